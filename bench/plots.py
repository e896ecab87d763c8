"""The plots of docs/benchmarks.md, readable on a light and on a dark page: no background, and grey ink."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

matplotlib.rcParams["svg.hashsalt"] = "cysession"  # the same figures give the same file
matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text: small files, and the page's own font
matplotlib.rcParams["font.family"] = "sans-serif"

INK, BLUE, ORANGE = "#808080", "#2090d0", "#e07020"
COLOURS = (BLUE, ORANGE, "#30a060", "#b060c0", "#c0a020", "#60a0a0", INK)
Series = Mapping[str, Sequence[tuple[float, float]]]


def bars(panels: Mapping[str, Sequence[tuple[str, float, bool]]], unit: str, path: Path) -> None:
    """One panel a table: (name, cost, ours) of each row."""
    heights = [len(rows) for rows in panels.values()]
    picture, axes = plt.subplots(
        len(panels),
        1,
        figsize=(7, 0.27 * sum(heights) + 0.75 * len(panels)),
        squeeze=False,
        height_ratios=heights,
    )
    for axis, (title, rows) in zip(axes[:, 0], panels.items(), strict=True):
        ordered = sorted(rows, key=lambda row: row[1], reverse=True)
        costs = [cost for _, cost, _ in ordered]
        axis.barh(
            [name for name, _, _ in ordered], costs, color=[BLUE if ours else INK for *_, ours in ordered]
        )
        far = min(costs) > 0 and max(costs) / min(costs) > 100
        if far:
            logarithmic(axis.xaxis, axis.set_xscale)
        dress(axis, title, f"{unit} (each step ten times the last)" if far else unit)
    save(picture, path)


def lines(
    panels: Mapping[str, Series],
    path: Path,
    x: str,
    y: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    ticks: Sequence[str] | None = None,
) -> None:
    """One panel beside the other. `ticks`: names of the places 0, 1, 2 ... on the x axis."""
    picture, axes = plt.subplots(1, len(panels), figsize=(max(7, 3.6 * len(panels)), 3.8), squeeze=False)
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    colour_of = dict(zip(names, COLOURS * (1 + len(names) // len(COLOURS)), strict=False))
    for axis, (title, series) in zip(axes[0], panels.items(), strict=True):
        for name, points in series.items():
            axis.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name, color=colour_of[name])
        if log_x:
            logarithmic(axis.xaxis, axis.set_xscale)
        if log_y:
            logarithmic(axis.yaxis, axis.set_yscale)
        else:
            axis.set_ylim(bottom=0)
        if ticks:
            axis.set_xticks(range(len(ticks)), ticks)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, labelcolor=INK, fontsize=7)
        dress(axis, title, x)
    axes[0][0].set_ylabel(y, color=INK, fontsize=8)
    save(picture, path)


def ratios(of_peers: Mapping[str, Sequence[float]], path: Path) -> None:
    """A dot for every table that has the peer: its cost divided by ours."""
    names = sorted(of_peers, key=lambda name: sorted(of_peers[name])[len(of_peers[name]) // 2])
    picture, axis = plt.subplots(figsize=(7, 0.27 * len(names) + 1))
    for place, name in enumerate(names):
        values = of_peers[name]
        colours = [BLUE if value >= 1 else ORANGE for value in values]
        axis.scatter(values, [place] * len(values), c=colours, s=18)
    axis.set_yticks(range(len(names)), names)
    logarithmic(axis.xaxis, axis.set_xscale)
    axis.axvline(1, color=INK, linewidth=1)
    axis.grid(alpha=0.3, axis="x")
    dress(axis, "", "times our cost: right of the line the peer takes longer")
    save(picture, path)


def logarithmic(axis: Any, set_scale: Callable[[str], object]) -> None:
    set_scale("log")
    axis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")


def dress(axis: Any, title: str, x: str) -> None:
    axis.set_title(title, color=INK, fontsize=9, loc="left")
    axis.set_xlabel(x, color=INK, fontsize=8)
    axis.tick_params(which="both", colors=INK, labelsize=8)
    for spine in axis.spines.values():
        spine.set_color(INK)


def save(picture: Any, path: Path) -> None:
    picture.tight_layout()
    picture.savefig(path, transparent=True, metadata={"Date": None})
    plt.close(picture)
    # matplotlib writes a font list that no browser needs and a DOCTYPE that fetches nothing but looks as if it did.
    text = re.sub(r"<!DOCTYPE.*?>\n", "", path.read_text(), flags=re.DOTALL)
    path.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n")


def by_first(pairs: Iterable[tuple[str, Any]], make: Callable[[], Any] = list) -> dict[str, Any]:
    """name -> what belongs to it, in order."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        found.setdefault(name, make()).append(value)
    return found
