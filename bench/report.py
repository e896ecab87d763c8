"""Write docs/benchmarks.md and its plots from the JSON of one run of the benchmarks.

    python bench/report.py run.json

One section a file of bench/, headed by the question that the file asks and explained by its docstring; one table a
group, with the ratio of each row to ours. Groups say how many operations a round does ("..., per 1000 operations").
Where a benchmark reports figures of its own (`extra_info`) in place of a time, the table has those.
"""

import ast
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

matplotlib.rcParams["svg.hashsalt"] = "cysession"  # the same figures give the same file
BENCH = Path(__file__).resolve().parent
DOCS = BENCH.parent / "docs"
PLOTS = DOCS / "benchmarks"
OURS = "cysession"
ADDED = "added_us"  # to a bare request, by bench/added.py and its like
INK, BLUE, ORANGE = "#808080", "#2090d0", "#e07020"  # readable on a light and on a dark page


class Row(NamedTuple):
    """One benchmark. Times in ns an operation."""

    file: str
    group: str
    name: str
    least: float
    median: float
    extra: dict[str, Any]

    @property
    def cost(self) -> float:
        """What is compared: the time, or what a middleware adds to a bare request."""
        added = self.extra.get(ADDED)
        return self.least if added is None else 1e3 * float(added)


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
                bench["name"].removeprefix("test_").replace("_", " "),
                bench["stats"]["min"] * 1e9 / count,
                bench["stats"]["median"] * 1e9 / count,
                bench["extra_info"],
            )
        )
    return found


def grouped(found: Iterable[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in found:
        groups.setdefault(row.group, []).append(row)
    return groups


def is_ours(row: Row) -> bool:
    return row.name.startswith(OURS)


def has_peers(group: list[Row]) -> bool:
    return any(map(is_ours, group)) and not all(map(is_ours, group))


def reference(group: list[Row]) -> Row:
    """What the others are compared with: our best row, or the first one where all are ours."""
    ours = [row for row in group if is_ours(row)]
    return min(ours, key=lambda row: row.cost) if ours else group[0]


# ---- tables ------------------------------------------------------------------------------------------------


def time_of(ns: float) -> str:
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}"
    return f"{ns:.3g} ns"


def figure(value: object) -> str:
    return (
        f"{value:,.3g}"
        if isinstance(value, float) and abs(value) < 1000
        else f"{value:,.0f}"
        if isinstance(value, int | float)
        else str(value)
    )


def table(group: list[Row]) -> str:
    facts = [key for key in dict.fromkeys(key for row in group for key in row.extra) if key != ADDED]
    once = reference(group)
    compared = not facts or has_peers(group)
    head = [""]
    if compared:
        head += (
            ["added", f"to {once.name}"] if ADDED in once.extra else ["minimum", "median", f"to {once.name}"]
        )
    lines = ["| " + " | ".join(head + facts) + " |", "|---|" + "---:|" * (len(head) - 1 + len(facts))]
    for row in sorted(group, key=lambda row: row.cost) if has_peers(group) else group:
        cells = [f"**{row.name}**" if is_ours(row) else row.name]
        if compared:
            times = [time_of(row.cost)] if ADDED in once.extra else [time_of(row.least), time_of(row.median)]
            cells += [*times, f"{row.cost / once.cost:.2f}" if once.cost > 0 else ""]
        lines.append("| " + " | ".join(cells + [figure(row.extra.get(fact, "")) for fact in facts]) + " |")
    return "\n".join(lines)


def lost(groups: dict[str, list[Row]]) -> list[str]:
    """Where somebody else is faster than we are."""
    lines = []
    for name, group in groups.items():
        if not has_peers(group):
            continue
        ours = reference(group)
        for row in sorted(group, key=lambda row: row.cost):
            if row.cost < ours.cost and not row.name.startswith("bare"):
                lines.append(f"- {name}: {row.name} takes {row.cost / ours.cost:.2f} of our time")
    return lines


# ---- plots -------------------------------------------------------------------------------------------------


def plot(groups: dict[str, list[Row]], path: Path) -> bool:
    """Bars of the time of each row beside its peers, one panel a group. False: there is nobody to compare with."""
    shown = {name: group for name, group in groups.items() if has_peers(group)}
    if not shown:
        return False
    heights = [len(group) for group in shown.values()]
    picture, axes = plt.subplots(
        len(shown),
        1,
        figsize=(7, 0.32 * sum(heights) + 0.75 * len(shown)),
        squeeze=False,
        height_ratios=heights,
    )
    for axis, (name, group) in zip(axes[:, 0], shown.items(), strict=True):
        ordered = sorted(group, key=lambda row: row.cost, reverse=True)
        axis.barh(
            [row.name for row in ordered],
            [row.cost / 1e3 for row in ordered],
            color=[BLUE if is_ours(row) else INK for row in ordered],
        )
        axis.set_title(name, color=INK, fontsize=9, loc="left")
        axis.set_xlabel(
            "us an operation, minimum" if ADDED not in reference(group).extra else "us added to a request",
            color=INK,
            fontsize=8,
        )
        axis.tick_params(colors=INK, labelsize=8)
        for spine in axis.spines.values():
            spine.set_color(INK)
    picture.tight_layout()
    picture.savefig(path, transparent=True, metadata={"Date": None})
    plt.close(picture)
    return True


# ---- the page ----------------------------------------------------------------------------------------------


def question(file: str) -> tuple[str, str]:
    """The first line of a benchmark's docstring, and the rest of it."""
    text = ast.get_docstring(ast.parse((BENCH / file).read_text())) or file
    first, _, rest = text.partition("\n")
    return first, rest.strip()


def section(file: str, found: list[Row]) -> str:
    head, text = question(file)
    groups = grouped(found)
    parts = [f"## {head}", f"`bench/{file}`", text]
    name = file.removesuffix(".py").removeprefix("test_")
    if plot(groups, PLOTS / f"{name}.svg"):
        parts.append(f"![time of each beside its peers](benchmarks/{name}.svg)")
    for group, members in groups.items():
        parts += [f"**{group}**" if group else "", table(members)]
    return "\n\n".join(part for part in parts if part)


def page(run: dict[str, Any]) -> str:
    found = rows(run)
    machine = run["machine_info"]
    losses = lost(grouped(found))
    versions = machine.get("versions", {})
    parts = [
        "# Benchmarks",
        "Written by `make bench` from one run on one machine. Read ratios within a table, not nanoseconds across "
        "machines or runs: another machine has other times and much the same ratios. Run it on yours.",
        f"CPython {machine['python_version']}, {machine['cpu'].get('brand_raw', 'unknown processor')}, "
        f"{machine['cpu'].get('count', '?')} cores; load {machine.get('load', '?')} at the start; "
        f"{run['datetime'][:10]}.",
        "## How it is measured",
        "Everything that is compared runs in one process of one run, one after the other within a file, each warmed "
        "up. A figure is the minimum of many rounds, each a loop of many operations: what the code costs when nothing "
        "else disturbs it. The median beside it says how quiet the machine was. Each peer is used as its documentation "
        "says, in its fastest safe configuration. Figures of the Go original stand in the text where they help, with "
        "their origin; they come from other runs and are in no ratio.",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + "."
        if versions
        else "",
        "## What we lose at",
        "\n".join(losses) or "Nothing in this run.",
        "A plain dict has no expiry, no locks, no copies and no commit; it is here as the floor.",
    ]
    files = list(dict.fromkeys(row.file for row in found))
    parts += [section(file, [row for row in found if row.file == file]) for file in files]
    return "\n\n".join(part for part in parts if part) + "\n"


def main() -> None:
    run = json.loads(Path(sys.argv[1]).read_text())
    PLOTS.mkdir(exist_ok=True)
    (DOCS / "benchmarks.md").write_text(page(run))
    print(f"wrote docs/benchmarks.md and docs/benchmarks/: {len(run['benchmarks'])} benchmarks")


if __name__ == "__main__":
    main()
