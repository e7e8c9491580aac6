"""``chaos``: start the configured server, put faults into it, and tell whether it kept its promises."""

from __future__ import annotations

import json
import logging
import os
import sys
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
import trio

from tangram.config import find_config_file, load_config
from tangram.errors import ConfigError, Fault
from tangram.testing.campaign import Campaign, run_campaign
from tangram.testing.catalogue import FAULTS
from tangram.testing.invariants import INVARIANTS
from tangram.testing.report import render_html

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["run_chaos"]

SHOWN_FAULTS = 12
"""Faults in the table that is shown live: the last ones."""


def run_chaos(
    config_file: Path | None,
    *,
    seed: int,
    duration: float,
    faults: Sequence[str],
    only: str | None,
    report: Path | None,
) -> int:
    """Run a campaign and write its report.

    Returns:
        The exit status: 0, or 1 if an invariant broke.

    Raises:
        ConfigError: the configuration is wrong, or a fault is not known.
    """
    unknown = [name for name in faults if name not in FAULTS]
    if unknown:
        told = f"there is no fault {unknown[0]!r}; expected some of {', '.join(sorted(FAULTS))}"
        raise ConfigError([Fault(told, "--faults", "faults")], about="command line")
    path = find_config_file(config_file, os.environ, Path.cwd())
    loaded = load_config(path, os.environ)  # every fault of the file is told here, as by `serve`
    tables = {} if path is None else tomllib.loads(path.read_text())
    _be_quiet()
    campaign = _show_while(
        plugins=list(loaded.config.core.plugins),
        tables=tables,
        seed=seed,
        duration=duration,
        faults=list(faults),
        only=only,
    )
    _write(campaign, report)
    return 1 if campaign.broken else 0


def _be_quiet() -> None:
    """The log is evidence here, and its lines would tear the table; the report has what happened."""
    structlog.configure(processors=[_drop], cache_logger_on_first_use=False)
    logging.getLogger().handlers[:] = [logging.NullHandler()]


def _drop(_logger: Any, _method: str, _event: Any) -> Any:
    raise structlog.DropEvent


def _show_while(**settings: Any) -> Campaign:
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    if not console.is_terminal:
        return trio.run(lambda: run_campaign(settings.pop("plugins"), settings.pop("tables"), **settings))
    with Live(console=console, refresh_per_second=8) as live:

        async def main() -> Campaign:
            def show(campaign: Campaign) -> None:
                live.update(_table(campaign))

            return await run_campaign(
                settings.pop("plugins"), settings.pop("tables"), on_news=show, **settings
            )

        campaign = trio.run(main)
        live.update(_table(campaign))
    return campaign


def _table(campaign: Campaign) -> Table:
    from rich.table import Table

    down = ", ".join(campaign.down) or "nobody"
    table = Table(title=f"tangram chaos, seed {campaign.seed}", caption=f"down now: {down}", expand=False)
    table.add_column("fault")
    table.add_column("healed after", justify="right")
    table.add_column("outcome")
    for struck in campaign.struck[-SHOWN_FAULTS:]:
        colour = "green" if struck.outcome == "up" else "yellow"
        table.add_row(struck.name, f"{struck.healed * 1000:.0f} ms", f"[{colour}]{struck.outcome}[/]")
    restarts = ", ".join(f"{name} {count}" for name, count in campaign.restarts.most_common())
    table.add_section()
    table.add_row(f"{len(campaign.struck)} faults; crashes", "", restarts or "none")
    table.add_row("connections", str(campaign.connections), f"{campaign.refused} refused")
    table.add_row("messages", str(len(campaign.messages)), "")
    broken = Counter(one.invariant for one in campaign.broken)
    held = len(INVARIANTS) - len(broken)
    table.add_section()
    table.add_row(
        "invariants", f"{held} held", ", ".join(f"[red]{name}[/]" for name in broken) or "[green]all[/]"
    )
    return table


def _write(campaign: Campaign, report: Path | None) -> None:
    told = campaign.to_dict()
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.with_suffix(".json").write_text(json.dumps(told, indent=1))
        report.with_suffix(".html").write_text(render_html(told))
    for one in campaign.broken:
        sys.stderr.write(f"broken: {one}\n")
    files = "" if report is None else f"; see {report.with_suffix('.html')}"
    verdict = "broken" if campaign.broken else "held"
    sys.stdout.write(f"{len(campaign.struck)} faults, seed {campaign.seed}: {verdict}{files}\n")
