"""Write docs/benchmarks.md and its plots from the JSON of one run of the benchmarks.

    python bench/report.py run.json [another.json ...]

The page says what machine and versions the first file is of; further files bring rows of their own, such as those of
another interpreter. One section a file of bench/, headed by the question that the file asks and explained by its
docstring; one table a group, ratios first. What the benchmarks say beside their times (`extra_info`) is described in
race.py; figures under any other key become columns.
"""

import ast
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import plots

BENCH = Path(__file__).resolve().parent
DOCS = BENCH.parent / "docs"
PLOTS = DOCS / "benchmarks"
OURS = "cysession"
OWN = {"added_us", "added_median_us", "absent", "load", "bar", "note", "compare", "base", "bare"}
ORDER = (
    *("hot", "scale", "wheel", "maps", "storages", "create", "codec", "file", "redis", "redis_cycle"),
    *("asgi", "wsgi", "flask", "django", "cookies", "memory", "gc", "expiry", "threads", "start"),
)
PERCENTILES = ("50 %", "90 %", "99 %", "99.9 %", "99.99 %", "worst")


class Row(NamedTuple):
    """One benchmark. Times in ns an operation."""

    file: str
    group: str
    name: str
    least: float
    median: float
    extra: dict[str, Any]

    @property
    def ours(self) -> bool:
        return self.name.startswith(OURS)

    @property
    def added(self) -> bool:
        return "added_us" in self.extra

    @property
    def cost(self) -> float:
        """What is compared: a figure that was named, what a middleware adds to a bare request, or the time."""
        if "compare" in self.extra:
            return float(self.extra[self.extra["compare"]])
        return 1e3 * float(self.extra["added_us"]) if self.added else self.least

    @property
    def middle(self) -> float:
        return 1e3 * float(self.extra["added_median_us"]) if self.added else self.median

    @property
    def facts(self) -> dict[str, Any]:
        return {key: value for key, value in self.extra.items() if key not in OWN}


# ---- reading -----------------------------------------------------------------------------------------------


def rows(run: dict[str, Any]) -> list[Row]:
    found = []
    for bench in run["benchmarks"]:
        group = bench["group"] or ""
        per = re.search(r",? per ([\d,]+) \w+", group)
        count = int(per[1].replace(",", "")) if per else 1
        found.append(
            Row(
                bench["fullname"].partition("::")[0].rpartition("/")[2],
                group.replace(per[0], "") if per else group,
                bench["name"].removeprefix("test_").replace("_", " ")
                if "[" in bench["name"]
                else bench["name"],
                bench["stats"]["min"] * 1e9 / count,
                bench["stats"]["median"] * 1e9 / count,
                bench["extra_info"],
            )
        )
    return found


def grouped(found: Iterable[Row]) -> dict[str, list[Row]]:
    return plots.by_first((row.group, row) for row in found)


def compared(group: list[Row]) -> list[Row]:
    """The rows that something is said of: without the bare app that the others contain."""
    return [row for row in group if not row.extra.get("bare")]


def has_costs(group: list[Row]) -> bool:
    return all("compare" in row.extra or row.least > 0 for row in group)


def reference(group: list[Row]) -> Row:
    """What the others are compared with: the row that says so, our best row, or the first one."""
    for row in group:
        if row.extra.get("base"):
            return row
    return our_best(group) or group[0]


def our_best(group: list[Row]) -> Row | None:
    """The row of ours that a table is about, if it says so, or the one that costs least."""
    for row in group:
        if row.ours and row.extra.get("base"):
            return row
    return min((row for row in group if row.ours), key=lambda row: row.cost, default=None)


def peers(group: list[Row]) -> list[Row]:
    return [row for row in compared(group) if not row.ours]


def against_peers(found: Iterable[Row]) -> Iterable[tuple[str, list[Row], Row]]:
    """(group, peers, our best row) of every table that has both and in which lower is better."""
    for name, group in grouped(found).items():
        ours = our_best(compared(group))
        if ours is not None and peers(group) and has_costs(group) and ours.cost > 0:
            yield name, peers(group), ours


# ---- tables ------------------------------------------------------------------------------------------------


def time_of(ns: float) -> str:
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if abs(ns) >= size:
            return f"{ns / size:.3g} {unit}"
    return f"{ns:.3g} ns"


def figure(value: object) -> str:
    if not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def ratio_of(cost: float, base: float) -> str:
    if base <= 0:
        return ""
    return f"{cost / base:.2f}" if cost / base < 100 else f"{cost / base:,.0f}"


def bar_of(row: Row) -> str:
    """The bar is a ratio where times are compared, and a figure where those are."""
    return f"<= {row.extra['bar']:g}" if "bar" in row.extra else ""


def table(group: list[Row]) -> str:
    shown = compared(group)
    once = reference(shown)
    facts = list(dict.fromkeys(key for row in shown for key in row.facts))
    timed = once.least > 0
    ratios = has_costs(shown) and len(shown) > 1
    bars = any("bar" in row.extra for row in shown)
    head = [""]
    head += [f"ratio to {once.name}"] * ratios
    head += [f"bar, {once.extra['compare']}" if "compare" in once.extra else "bar"] * bars
    if timed:
        head += ["added, minimum", "added, median"] if once.added else ["minimum", "median"]
    lines = [cells(head + facts), cells(["---"] + ["---:"] * (len(head) - 1 + len(facts)))]
    for row in sorted(shown, key=lambda row: row.cost) if peers(shown) and has_costs(shown) else shown:
        line = [f"**{row.name}**" if row.ours else row.name]
        line += [ratio_of(row.cost, once.cost)] * ratios + [bar_of(row)] * bars
        if timed:
            line += [time_of(row.cost), time_of(row.middle)]
        lines.append(cells(line + [figure(row.facts.get(fact, "")) for fact in facts]))
    for name, package in absent(group).items():
        lines.append(cells([name, f"{package} is not installed"] + [""] * (len(head) - 2 + len(facts))))
    return "\n".join(lines)


def cells(values: Iterable[str]) -> str:
    return "| " + " | ".join(values) + " |"


def absent(group: Iterable[Row]) -> dict[str, str]:
    return {name: package for row in group for name, package in row.extra.get("absent", {}).items()}


def notes(group: list[Row]) -> str:
    """What stands below a table."""
    said = [f"{row.name} leaves out: {row.extra['note']}" for row in group if "note" in row.extra]
    said += [f"The {row.name} takes {time_of(row.least)} a request" for row in group if row.extra.get("bare")]
    return "; ".join(said) + "." if said else ""


# ---- what we lose at ---------------------------------------------------------------------------------------


def lost(found: list[Row]) -> list[str]:
    """Where somebody else takes less than we do: by question and peer, the worst first."""
    sections = []
    for file in dict.fromkeys(row.file for row in found):
        shares: dict[str, dict[str, float]] = {}
        why: dict[str, str] = {}
        for group, others, ours in against_peers(row for row in found if row.file == file):
            for row in others:
                if row.cost < ours.cost and not row.name.startswith("bare"):
                    shares.setdefault(row.name, {})[group] = max(row.cost, 0) / ours.cost
                    why[row.name] = row.extra.get("note", "")
        lines = [
            f"    - {name}: {'; '.join(f'{share:.2f} ({group})' for group, share in by_share(of_groups))}"
            + (f". It leaves out: {why[name]}" if why[name] else "")
            for name, of_groups in sorted(shares.items(), key=lambda item: min(item[1].values()))
        ]
        if lines:
            sections.append("\n".join([f"- {question(file)[0]}", *lines]))
    return sections


def by_share(of_groups: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(of_groups.items(), key=lambda item: item[1])


# ---- plots -------------------------------------------------------------------------------------------------


def plain(name: str) -> str:
    """The peer that a row is about: without its parameters and what it was used for."""
    name = re.sub(r"\[.*\]", "", name).partition(",")[0]
    name = re.sub(r" of dicts$|^(dict)\.get$", r"\1", name)
    return re.sub(r"^(cachebox|cachetools) \w+$", r"\1", name).strip()


def plot_ratios(found: list[Row]) -> str:
    pairs = [
        (plain(row.name), row.cost / ours.cost)
        for _, others, ours in against_peers(found)
        for row in others
        if row.cost > 0 and not row.name.startswith("bare")
    ]
    if not pairs:
        return ""
    plots.ratios(plots.by_first(pairs), PLOTS / "ratios.svg")
    return "![each peer's cost divided by ours](benchmarks/ratios.svg)"


def plot_bars(file: str, found: list[Row]) -> str:
    shown = {name: [*others, ours] for name, others, ours in against_peers(found)}
    if not shown:
        return ""
    panels = {}
    for name in shown:
        group = compared([row for row in found if row.group == name])
        scale = 1.0 if "compare" in group[0].extra else 1e3
        panels[name] = [(row.name, row.cost / scale, row.ours) for row in group]
    first = next(iter(shown.values()))[0]
    unit = first.extra.get("compare") or (
        "us added to a request" if first.added else "us an operation, minimum"
    )
    path = PLOTS / f"{stem(file)}.svg"
    plots.bars(panels, unit, path)
    return f"![cost of each beside its peers](benchmarks/{path.name})"


def plot_growth(found: list[Row]) -> str:
    points = [
        (row.name, (int(size[1].replace(",", "")), row.least))
        for row in found
        if (size := re.match(r"([\d,]+) sessions$", row.group))
    ]
    if not points:
        return ""
    plots.lines(
        {"": plots.by_first(points)},
        PLOTS / "scale.svg",
        "live sessions",
        "ns an operation, minimum",
        log_x=True,
    )
    return "![cost by number of sessions](benchmarks/scale.svg)"


def plot_throughput(found: list[Row]) -> str:
    panels: dict[str, Any] = {}
    for row in found:
        if how := re.search(r"(\d+) (task|thread)s?(?: on (\w+))?$", row.group):
            title = f"tasks on {how[3]}" if how[3] else f"{how[2]}s"
            points = panels.setdefault(title, {}).setdefault(plain(row.name), [])
            points.append((int(how[1]), 1e9 / row.least))
    if not panels:
        return ""
    plots.lines(panels, PLOTS / "redis.svg", "at once", "commands a second", log_x=True, log_y=True)
    return "![throughput by concurrency](benchmarks/redis.svg)"


def plot_latency(found: list[Row]) -> str:
    panels: dict[str, Any] = {}
    for row in found:
        places = [(n, row.extra.get(f"{name}, us")) for n, name in enumerate(PERCENTILES)]
        if all(value is not None for _, value in places):
            panels.setdefault(row.group.removeprefix("latency, "), {})[row.name] = places
    if not panels:
        return ""
    titles = {name: series for name, series in panels.items() if len(series) > 1}
    plots.lines(titles, PLOTS / "expiry.svg", "requests", "us", log_y=True, ticks=PERCENTILES)
    return "![latency while a million sessions expire](benchmarks/expiry.svg)"


DRAWN = {
    "test_scale.py": plot_growth,
    "test_redis.py": plot_throughput,
    "test_expiry.py": plot_latency,
}


# ---- the page ----------------------------------------------------------------------------------------------


def stem(file: str) -> str:
    return file.removesuffix(".py").removeprefix("test_")


def question(file: str) -> tuple[str, str]:
    """The first line of a benchmark's docstring, and the rest of it."""
    text = ast.get_docstring(ast.parse((BENCH / file).read_text())) or file
    first, _, rest = text.partition("\n")
    return first, rest.strip()


def section(file: str, found: list[Row]) -> str:
    head, text = question(file)
    parts = [f"## {head}", f"`bench/{file}`", text]
    parts.append(DRAWN[file](found) if file in DRAWN else plot_bars(file, found))
    for group, members in grouped(found).items():
        parts += [f"**{group}**" if group else "", table(members), notes(members)]
    return "\n\n".join(part for part in parts if part)


def bars_met(found: list[Row]) -> str:
    """The ratios that the core is held to."""
    group = [row for row in found if row.file == "test_hot.py"]
    return table(group) if group else "Not part of this run."


METHOD = """\
- **In turn.** The contenders of a table are built together and then run in alternating rounds, each round beginning
  with another one, so that whatever disturbs the machine disturbs all of them alike. A round is a loop of many
  operations. Nothing here compares two programs that ran a minute apart, except figures that need a process for each:
  memory, garbage collection, imports.
- **Warmed up.** Rounds that do not count come first. What the others have built is hidden from the garbage collector
  while a table is measured.
- **Minimum and median.** The minimum of all rounds is what the code costs when nothing else disturbs it, and the ratios
  are made of it. The median beside it says how quiet the machine was.
- **Pinned.** Everything runs on one processor, servers that are asked included, except where several are what is
  measured: threads, mass expiry with its sweeper, the Redis client by concurrency.
- **Middleware** is compared by what it adds: the same app without it is one of the contenders, and is subtracted.
- **Peers** are used as their documentation says, in their fastest safe configuration. One that cannot be installed is
  named in its table."""


def page(runs: list[dict[str, Any]]) -> str:
    run = runs[0]
    found = [row for one in runs for row in rows(one)]
    machine = run["machine_info"]
    versions = machine.get("versions", {})
    loads = [machine.get("load", 0.0), *(row.extra["load"] for row in found if "load" in row.extra)]
    missing = [name for name, version in versions.items() if version == "not installed"]
    others = [f"{one['machine_info']['python_version']}" for one in runs[1:]]
    parts = [
        "# Benchmarks",
        "Written by `make bench` from one run on one machine. Read ratios within a table, not nanoseconds across "
        "machines or runs: another machine has other times and much the same ratios. Run it on yours: it takes about a "
        'quarter of an hour; `make bench ARGS="bench/test_maps.py"` runs one question, and `cysession bench` a short '
        "table without the source tree.",
        f"CPython {machine['python_version']}, {machine['cpu'].get('brand_raw', 'unknown processor')}, "
        f"{machine['cpu'].get('count', '?')} processors; load {loads[0]:.2f} at the start and between {min(loads):.2f} "
        f"and {max(loads):.2f} on the way, of which 1 is the benchmark itself; {run['datetime'][:10]}."
        + (f" Without a GIL: CPython {', '.join(others)}." if others else ""),
        "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
        f"Not installed, and so not measured: {', '.join(missing)}." if missing else "",
        "## How it is measured",
        METHOD,
        "## In short",
        "One session, all of it in the processor's cache:",
        bars_met(found),
        "Every table of this page that has a peer, by peer; a dot is a table:",
        plot_ratios(found),
        "## What we lose at",
        "Where somebody else takes less than we do: their cost divided by ours, the worst first, and what they leave "
        "out where that is the reason. A plain dict, for one, is here as the floor.",
        "\n".join(lost(found)) or "Nothing in this run.",
    ]
    known = [f"test_{name}.py" for name in ORDER]
    files = sorted(
        {row.file for row in found}, key=lambda file: (known.index(file) if file in known else 99, file)
    )
    parts += [section(file, [row for row in found if row.file == file]) for file in files]
    if not others:
        parts.append(
            "Without a GIL nothing was measured in this run: `make freethreaded` builds such an interpreter once, and "
            "`make bench` finds it then."
        )
    parts += ["## The Go original", BENCH.joinpath("goframe.md").read_text().strip()]
    return "\n\n".join(part for part in parts if part) + "\n"


def main() -> None:
    runs = [json.loads(Path(name).read_text()) for name in sys.argv[1:]]
    PLOTS.mkdir(exist_ok=True)
    for old in PLOTS.glob("*.svg"):
        old.unlink()
    (DOCS / "benchmarks.md").write_text(page(runs))
    print(
        f"wrote docs/benchmarks.md and docs/benchmarks/: {sum(len(run['benchmarks']) for run in runs)} benchmarks"
    )


if __name__ == "__main__":
    main()
