"""A campaign as one HTML file: a timeline that can be looked at without anything else."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["render_html"]

WIDTH = 1100
LEFT = 220
LANE = 26

_STYLE = """
body{font:14px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:1340px;padding:0 1rem}
body{color:#1d2433;background:#fbfbfd}
h1{font-size:1.5rem;margin:0 0 .2rem}h2{font-size:1.05rem;margin:1.8rem 0 .5rem}
.verdict{display:inline-block;padding:.15rem .6rem;border-radius:.4rem;color:#fff;font-weight:600}
.ok{background:#1f7a4d}.bad{background:#b3261e}
table{border-collapse:collapse;width:100%}
td,th{text-align:left;padding:.25rem .6rem;border-bottom:1px solid #e3e6ee;vertical-align:top}
td.n{text-align:right;font-variant-numeric:tabular-nums}.muted{color:#667}
svg{background:#fff;border:1px solid #e3e6ee;border-radius:.5rem;width:100%;height:auto}
.scroll{overflow-x:auto}
@media(prefers-color-scheme:dark){body{background:#14171f;color:#dde2ee}svg{background:#1b1f2a;border-color:#333a4a}
td,th{border-color:#333a4a}text{fill:#dde2ee}.muted{color:#99a}}
"""


def render_html(report: Mapping[str, Any]) -> str:
    """The page of a campaign; ``report`` as of ``Campaign.to_dict``."""
    passed = report["passed"]
    verdict = f'<span class="verdict {"ok" if passed else "bad"}">{"held" if passed else "broken"}</span>'
    connections = report["connections"]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>tangram chaos</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
        f"<h1>tangram chaos {verdict}</h1>"
        f'<p class="muted">seed {report["seed"]}, {report["seconds"]:.1f} s, {len(report["faults"])} faults, '
        f"{sum(report['restarts'].values())} crashes, {connections['made']} connections "
        f"({connections['refused']} refused), {report['messages']} messages received</p>"
        f'<h2>Timeline</h2><div class="scroll">{_timeline(report)}</div>'
        f"<h2>Invariants</h2><table>{''.join(_invariants(report))}</table>"
        f"<h2>Faults</h2><table><tr><th>at<th>fault<th>healed after<th>outcome</tr>"
        f"{''.join(_faults(report))}</table></html>\n"
    )


def _invariants(report: Mapping[str, Any]) -> Iterator[str]:
    for name, messages in report["invariants"].items():
        mark = (
            '<span class="verdict bad">broken</span>' if messages else '<span class="verdict ok">held</span>'
        )
        told = "<br>".join(html.escape(message) for message in messages)
        yield f"<tr><td>{mark}<td>{name.replace('_', ' ')}<td>{told}</tr>"


def _faults(report: Mapping[str, Any]) -> Iterator[str]:
    for fault in report["faults"]:
        yield (
            f'<tr><td class="n">{fault["at"]:.2f} s<td>{html.escape(fault["name"])}'
            f'<td class="n">{fault["healed"] * 1000:.0f} ms<td>{html.escape(fault["outcome"])}</tr>'
        )
    for name, why in report["skipped"].items():
        yield f'<tr class="muted"><td><td>{html.escape(name)}<td><td>skipped: {html.escape(why)}</tr>'


def _timeline(report: Mapping[str, Any]) -> str:
    """A lane for each child of the tree: bars are incarnations, red lines are faults."""
    seconds = max(report["seconds"], 0.001)
    lanes: dict[str, list[tuple[float, float, int]]] = {}
    alive: dict[str, tuple[float, int]] = {}
    for event in report["events"]:
        name = "/".join(event["path"])
        if event["child"] is None or len(event["path"]) > 2:
            continue
        if event["kind"] == "started":
            lanes.setdefault(name, [])
            alive[name] = (event["at"], event["incarnation"])
        elif event["kind"] in {"stopped", "crashed", "quarantined"} and name in alive:
            since, number = alive.pop(name)
            lanes[name].append((since, event["at"], number))
    for name, (since, number) in alive.items():
        lanes[name].append((since, seconds, number))
    return _draw(report, lanes, seconds)


def _draw(
    report: Mapping[str, Any], lanes: Mapping[str, list[tuple[float, float, int]]], seconds: float
) -> str:
    scale = (WIDTH - LEFT - 20) / seconds
    height = LANE * (len(lanes) + 2) + 60
    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="timeline">']
    for index, (name, bars) in enumerate(lanes.items()):
        y = 60 + index * LANE
        shown = html.escape(name.removeprefix("incarnation/"))
        parts.append(f'<text x="10" y="{y + 14}" font-size="12">{shown}</text>')
        for since, until, number in bars:
            width = max(1.0, (until - since) * scale)
            title = f"{shown}, {since:.3f} to {until:.3f} s (incarnation {number})"
            parts.append(
                f'<rect x="{LEFT + since * scale:.1f}" y="{y}" width="{width:.1f}" '
                f'height="{LANE - 8}" rx="3" fill="#3f7fd1" fill-opacity=".85"><title>{title}</title></rect>'
            )
    bottom = 60 + len(lanes) * LANE
    for number, fault in enumerate(report["faults"]):
        x = LEFT + fault["at"] * scale
        title = html.escape(
            f"{fault['name']} at {fault['at']:.2f} s, healed after {fault['healed'] * 1000:.0f} ms"
        )
        parts.append(
            f'<g><title>{title}</title><line x1="{x:.1f}" x2="{x:.1f}" y1="44" y2="{bottom}" '
            f'stroke="#c62828" stroke-dasharray="3 2"/>'
            f'<circle cx="{x:.1f}" cy="{38 - 14 * (number % 2)}" r="6" fill="#c62828"/>'
            f'<text x="{x:.1f}" y="{41.5 - 14 * (number % 2)}" font-size="8" text-anchor="middle" '
            f'style="fill:#fff">{number + 1}</text></g>'
        )
    for tick in range(6):
        at = seconds * tick / 5
        x = LEFT + at * scale
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 20}" font-size="11" text-anchor="middle">{at:.1f} s</text>'
        )
    return "".join(parts) + "</svg>"
