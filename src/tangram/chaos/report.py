"""Render a campaign as one HTML file with a timeline."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import attrs

__all__ = ["render_html"]

WIDTH: Final = 1100
LEFT: Final = 220
LANE: Final = 26
DOT: Final = 14
"""Pixels between two fault numbers in one row, so that both are legible."""

TOP: Final = 24
"""Pixels above the first row of numbers."""

ROWS: Final = 5
"""Rows of numbers, at most: where more faults strike at once, numbers overlap."""

_STYLE: Final = """
body{font:14px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:1340px;padding:0 1rem}
body{color:#1d2433;background:#fbfbfd}
h1{font-size:1.5rem;margin:0 0 .2rem}h2{font-size:1.05rem;margin:1.8rem 0 .5rem}
.verdict{display:inline-block;padding:.05rem .5rem;border-radius:.4rem;color:#fff;font-weight:600}
.ok{background:#1f7a4d}.bad{background:#b3261e}
table{border-collapse:collapse;width:100%}
td,th{text-align:left;padding:.25rem .6rem .25rem 0;border-bottom:1px solid #e3e6ee;vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.muted{color:#667}td{overflow-wrap:anywhere}.verdict,th,td.w{white-space:nowrap}td.s{width:5rem}
svg{display:block;background:#fff;width:100%;min-width:860px;height:auto}
.scroll{overflow-x:auto;border:1px solid #e3e6ee;border-radius:.5rem}
@media(max-width:600px){body{margin:1rem auto}td,th{font-size:13px}td.w{white-space:normal}
.inv tr{display:block;border-bottom:1px solid #e3e6ee;padding:.2rem 0}.inv td{display:inline;border:0}}
@media(prefers-color-scheme:dark){body{background:#14171f;color:#dde2ee}svg{background:#1b1f2a}
td,th,.scroll{border-color:#333a4a}text{fill:#dde2ee}.muted{color:#99a}}
"""


def render_html(report: Mapping[str, Any]) -> str:
    """Return the page of a campaign.

    Args:
        report: as of ``Campaign.to_dict``.
    """
    passed = report["passed"]
    verdict = f'<span class="verdict {"ok" if passed else "bad"}">{"held" if passed else "broken"}</span>'
    connections = report["connections"]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>tangram chaos</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
        f"<h1>tangram chaos {verdict}</h1>"
        f'<p class="muted">seed {report["seed"]}, {report["seconds"]:.1f} s, {len(report["faults"])} faults, '
        f"{sum(report['restarts'].values())} crashes, {connections['made']} connections "
        f"({connections['refused']} refused), {report['messages']} messages received, "
        f"{report['recoveries']} recoveries</p>"
        f'<h2>Timeline</h2><div class="scroll">{_timeline(report)}</div>'
        f'<h2>Invariants</h2><table class="inv">{"".join(_invariants(report))}</table>'
        '<h2>Faults</h2><table><tr><th class="n">#<th class="n">at<th>fault<th class="n">healed after'
        "<th>outcome</tr>"
        f"{''.join(_faults(report))}</table></html>\n"
    )


def _invariants(report: Mapping[str, Any]) -> Iterator[str]:
    # Broken invariants come first: readers open the page for them.
    for name, messages in sorted(report["invariants"].items(), key=lambda one: not one[1]):
        mark = (
            '<span class="verdict bad">broken</span>' if messages else '<span class="verdict ok">held</span>'
        )
        lines = "<br>".join(html.escape(message) for message in messages)
        yield f'<tr><td class="s">{mark}<td class="w">{name.replace("_", " ")}<td>{lines}</tr>'


def _faults(report: Mapping[str, Any]) -> Iterator[str]:
    for number, fault in enumerate(report["faults"], 1):
        outcome = html.escape(fault["outcome"])
        if fault["outcome"] == "broken":
            outcome = f'<span class="verdict bad">{outcome}</span>'
        yield (
            f'<tr><td class="n">{number}<td class="n">{fault["at"]:.2f} s<td>{html.escape(fault["name"])}'
            f'<td class="n">{fault["healed"] * 1000:.0f} ms<td>{outcome}</tr>'
        )
    for name, why in report["skipped"].items():
        reason = f"left out: {html.escape(why)}"
        yield f'<tr class="muted"><td><td><td>{html.escape(name)}<td><td>{reason}</tr>'


@attrs.define
class _Lane:
    """The events of one child of the tree."""

    bars: list[tuple[float, float, int]] = attrs.field(factory=list)
    """Its incarnations: from, to, number."""
    crashes: list[tuple[float, str]] = attrs.field(factory=list)
    """Times and causes."""


def _timeline(report: Mapping[str, Any]) -> str:
    """Draw a lane for each child: bars are incarnations, marks crashes, lines faults."""
    seconds = max(report["seconds"], 0.001)
    lanes: dict[str, _Lane] = {}
    alive: dict[str, tuple[float, int]] = {}
    for event in report["events"]:
        name = "/".join(event["path"])
        if event["child"] is None or len(event["path"]) > 2:
            continue
        lane = lanes.setdefault(name, _Lane())
        if event["kind"] == "crashed":
            lane.crashes.append((event["at"], event.get("cause") or ""))
        if event["kind"] == "started":
            alive[name] = (event["at"], event["incarnation"])
        elif event["kind"] in {"stopped", "crashed", "quarantined"} and name in alive:
            since, number = alive.pop(name)
            lane.bars.append((since, event["at"], number))
    for name, (since, number) in alive.items():
        lanes[name].bars.append((since, seconds, number))
    return _draw(report, lanes, seconds)


def _draw(report: Mapping[str, Any], lanes: Mapping[str, _Lane], seconds: float) -> str:
    scale = (WIDTH - LEFT - 40) / seconds
    rows = _rows([LEFT + fault["at"] * scale for fault in report["faults"]])
    top = TOP + DOT * (max(rows, default=0) + 1)
    bottom = top + len(lanes) * LANE
    parts = [f'<svg viewBox="0 0 {WIDTH} {bottom + 36}" role="img" aria-label="timeline">']
    for index, (name, lane) in enumerate(lanes.items()):
        parts += _draw_lane(name.removeprefix("incarnation/"), lane, top + index * LANE, scale)
    for number, (fault, row) in enumerate(zip(report["faults"], rows, strict=True), 1):
        parts.append(_draw_fault(number, fault, LEFT + fault["at"] * scale, TOP + row * DOT, bottom))
    for tick in range(6):
        at = seconds * tick / 5
        parts.append(
            f'<text x="{LEFT + at * scale:.1f}" y="{bottom + 20}" font-size="11" text-anchor="middle">'
            f"{at:.1f} s</text>"
        )
    return "".join(parts) + "</svg>"


def _rows(places: Sequence[float]) -> list[int]:
    """Return the row of each number, so that no two touch; the first free one from the bottom."""
    last = [float("-inf")] * ROWS
    rows = []
    for x in places:
        row = next((at for at in range(ROWS) if x - last[at] >= DOT), ROWS - 1)
        last[row] = x
        rows.append(row)
    return rows


def _draw_lane(name: str, lane: _Lane, y: float, scale: float) -> Iterator[str]:
    shown = html.escape(name)
    yield f'<text x="10" y="{y + 14}" font-size="12">{shown}</text>'
    for since, until, number in lane.bars:
        width = max(1.0, (until - since) * scale)
        title = f"{shown}, {since:.3f} to {until:.3f} s (incarnation {number})"
        yield (
            f'<rect x="{LEFT + since * scale:.1f}" y="{y}" width="{width:.1f}" '
            f'height="{LANE - 8}" rx="3" fill="#3f7fd1" fill-opacity=".85"><title>{title}</title></rect>'
        )
    for at, cause in lane.crashes:
        title = html.escape(f"{name} crashed at {at:.3f} s: {cause}")
        x = LEFT + at * scale
        yield (
            f'<path d="M{x - 4:.1f} {y - 2}h8l-4 7z" fill="#e8a33d" stroke="#7a4a00" stroke-width=".6">'
            f"<title>{title}</title></path>"
        )


def _draw_fault(number: int, fault: Mapping[str, Any], x: float, y: float, bottom: float) -> str:
    title = html.escape(
        f"{fault['name']} at {fault['at']:.2f} s, {fault['outcome']} after {fault['healed'] * 1000:.0f} ms"
    )
    return (
        f'<g><title>{title}</title><line x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{bottom}" '
        f'stroke="#c62828" stroke-opacity=".6" stroke-dasharray="3 2"/>'
        f'<circle cx="{x:.1f}" cy="{y}" r="6.5" fill="#c62828"/>'
        f'<text x="{x:.1f}" y="{y + 3}" font-size="8" text-anchor="middle" style="fill:#fff">'
        f"{number}</text></g>"
    )
