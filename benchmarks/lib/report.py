"""Medians, tables in Markdown, and plots in SVG."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Final, NoReturn

from benchmarks.lib.processes import ROOT, busy_share

RESULTS = ROOT / "benchmarks" / "results"
COLOURS = (
    *("#2563eb", "#9ca3af", "#f59e0b", "#dc2626", "#7c3aed"),
    *("#059669", "#db2777", "#0891b2", "#65a30d"),
)

Sample = Mapping[str, float]


WRONG = ("lost", "closed", "refused", "disordered", "unanswered")
"""Figures that count errors."""


def medians(samples: Sequence[Sample]) -> dict[str, float]:
    """Return the median of each figure, and the sum of counts of errors.

    A sum, because a median of 0 lost messages would hide a run that lost some.
    """
    return {
        name: (sum if name in WRONG else statistics.median)([sample[name] for sample in samples])
        for name in samples[0]
    }


@dataclass
class Results:
    """Samples by workload and contender, in the order of their first appearance."""

    samples: dict[str, dict[str, list[Sample]]] = field(default_factory=dict)

    def add(self, workload: str, contender: str, sample: Sample) -> None:
        self.samples.setdefault(workload, {}).setdefault(contender, []).append(sample)
        figures = "  ".join(f"{name} {show(value)}" for name, value in sample.items())
        print(f"{workload:34} {contender:24} {figures}", flush=True)

    def median(self, workload: str, contender: str) -> dict[str, float] | None:
        samples = self.samples.get(workload, {}).get(contender)
        return medians(samples) if samples else None

    def value(self, workload: str, contender: str, name: str) -> float:
        """Return the measured value, or NaN."""
        return (self.median(workload, contender) or {}).get(name, math.nan)

    def ratio(self, workload: str, ours: str, theirs: str, name: str) -> float:
        """Return the median of the ratios of *ours* to *theirs* in each round, or NaN.

        Both of a ratio were measured one after the other, so other work on the machine falls out of it.
        """
        found = self.samples.get(workload, {})
        pairs = zip(found.get(ours, ()), found.get(theirs, ()), strict=False)
        ratios = [one[name] / other[name] for one, other in pairs if other[name]]
        return statistics.median(ratios) if ratios else math.nan


@dataclass
class Target:
    """A target: the name, the figure, and its limit."""

    what: str
    value: float
    bound: float
    unit: str = ""
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the target was met; None if it was not measured."""
        if math.isnan(self.value):
            return None
        value = round(self.value, 6)  # 60 ticks of 10 ms are 12.000000000000002 us a message
        return value >= self.bound if self.at_least else value <= self.bound

    def promise(self) -> Promise:
        sign = ">=" if self.at_least else "<="
        return Promise(
            self.what,
            f"{show(self.value)} {self.unit}".strip(),
            f"{sign} {show(self.bound)} {self.unit}".strip(),
            self.met,
        )


@dataclass
class Promise:
    """A target beside the measured value, as text."""

    what: str
    measured: str
    target: str
    met: bool | None

    def row(self) -> list[str]:
        target = self.target.replace("<=", "&le;").replace(">=", "&ge;")
        return [self.what, self.measured, target, VERDICTS[self.met]]


VERDICTS: Mapping[bool | None, str] = {True: "met", False: "**missed**", None: "not measured"}

FIGURES = "TANGRAM_BENCH_FIGURES"
"""Environment variable with the file for figures with targets, a line of JSON each."""


def promised(promises: Iterable[Promise]) -> str:
    return table(["what", "measured", "target", ""], [one.row() for one in promises])


def conclude(promises: Sequence[Promise]) -> NoReturn:
    """Write the figures with targets for `make bench`, print the missed ones, and exit.

    The status is 1 if a target was missed.
    """
    path = os.environ.get(FIGURES)
    if path:
        with Path(path).open("a") as file:
            file.writelines(json.dumps(asdict(one)) + "\n" for one in promises)
    missed = [one for one in promises if one.met is False]
    for one in missed:
        print(f"missed: {one.what}: {one.measured}, promised {one.target}")
    sys.exit(1 if missed else 0)


def show(value: float) -> str:
    if math.isnan(value):
        return "-"
    if value == int(value) and abs(value) < 1e7:
        return f"{int(value):,}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def results_table(results: Results, columns: Mapping[str, str], workloads: Sequence[str]) -> str:
    """Return a table in Markdown.

    ``columns`` maps the name of a figure to its heading; figures without values are left out.
    """
    rows = [
        [workload, contender, *(show(results.value(workload, contender, name)) for name in columns)]
        for workload in workloads
        for contender in results.samples.get(workload, {})
    ]
    return table(["workload", "server", *columns.values()], rows)


BUSY: Final = 0.05
"""Share of the processors that other programs may use before the results get a warning."""


def machine() -> str:
    """Describe the machine and the date; call it before a server is started."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    busy = busy_share()
    told = f"{time.strftime('%Y-%m-%d', time.gmtime())}, {os.cpu_count()} x {model}, "
    told += f"Linux {platform.release().partition('-')[0]}, Python {platform.python_version()}. "
    if busy <= BUSY:
        return told + "Nothing else was running when this began."
    return (
        f"{told}Other programs used {busy:.0%} of the processors when this began: latencies and rates are "
        "those of a busy machine."
    )


def write(name: str, text: str, plot: str, *, quick: bool) -> None:
    """Write ``results/NAME.md`` and ``.svg``; a quick run's go to ``results/quick``."""
    folder = RESULTS / "quick" if quick else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(text)
    if plot:
        (folder / f"{name}.svg").write_text(plot)
    sys.stdout.write(f"\n{text}\nwritten to {folder.relative_to(ROOT)}/{name}.md\n")


# Plots: bars on a logarithmic axis, because the values differ by powers of ten.

LABELS, WIDTH, BAR, GAP = 250, 900, 14, 14


def plot(title: str, results: Results, figure: str, unit: str, workloads: Sequence[str]) -> str:
    """Draw one panel of bars, with the contenders of each workload side by side."""
    contenders = list(dict.fromkeys(who for one in workloads for who in results.samples.get(one, {})))
    bars: list[tuple[str, str, float]] = [
        (workload, who, value)
        for workload in workloads
        for who in results.samples.get(workload, {})
        if (value := results.value(workload, who, figure)) > 0
    ]
    if not bars:
        return ""
    low = 10 ** math.floor(math.log10(min(value for *_, value in bars)) - 0.01)
    high = 10 ** math.ceil(math.log10(max(value for *_, value in bars)) + 0.15)
    span = math.log10(high / low)

    def x(value: float) -> float:
        return LABELS + (WIDTH - LABELS - 60) * math.log10(value / low) / span

    out = [f'<text x="10" y="24" class="title">{escape(title)}</text>']
    for number, who in enumerate(contenders):
        left = LABELS + number * 160
        out.append(
            f'<rect x="{left}" y="36" width="12" height="12" fill="{COLOURS[number % len(COLOURS)]}"/>'
        )
        out.append(f'<text x="{left + 17}" y="46">{escape(who)}</text>')
    y = 66.0
    grid_top = y - 6
    before = ""
    for workload, who, value in bars:
        if workload != before:
            y += GAP if before else 0
            out.append(f'<text x="10" y="{y + 11:.0f}">{escape(workload)}</text>')
            before = workload
        colour = COLOURS[contenders.index(who) % len(COLOURS)]
        out.append(rect(LABELS, y, x(value) - LABELS, BAR - 2, colour))
        out.append(f'<text x="{x(value) + 5:.1f}" y="{y + 10:.0f}" class="value">{show(value)}</text>')
        y += BAR
    grid = []
    step = low
    while step <= high * 1.001:
        grid.append(
            f'<line x1="{x(step):.1f}" y1="{grid_top}" x2="{x(step):.1f}" y2="{y + 4:.0f}" class="grid"/>'
        )
        grid.append(f'<text x="{x(step):.1f}" y="{y + 18:.0f}" class="value">{step:g} {escape(unit)}</text>')
        step *= 10
    return f'<g data-height="{y + 40:.0f}">' + "\n".join(grid + out) + "</g>"


def rect(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.0f}" width="{width:.1f}" height="{height:.0f}" fill="{colour}"/>'


def svg(*panels: str) -> str:
    """Draw the panels below one another."""
    y, body = 0.0, []
    for panel in filter(None, panels):
        height = float(panel.split('"', 2)[1])
        body.append(f'<g transform="translate(0 {y:.0f})">{panel}</g>')
        y += height
    style = (
        "text{font:12px system-ui,sans-serif;fill:#111}.title{font-weight:600;font-size:14px}"
        ".value{font-size:11px;fill:#444}.grid{stroke:#e5e7eb}"
    )
    size = f'viewBox="0 0 {WIDTH} {y:.0f}" width="{WIDTH}" height="{y:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<style>{style}</style>\n'
    return head + rect(0, 0, WIDTH, y, "white") + "\n" + "\n".join(body) + "\n</svg>\n"
