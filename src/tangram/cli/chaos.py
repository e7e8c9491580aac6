"""``chaos``: start the configured server, put faults into it, and tell whether it kept its promises."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
import trio

from tangram.config import find_config_file, load_config
from tangram.errors import ConfigError, Fault, OperatorError, PluginError
from tangram.testing.campaign import Campaign, no_such_fault, run_campaign
from tangram.testing.catalogue import FAULTS
from tangram.testing.invariants import INVARIANTS
from tangram.testing.report import render_html
from tangram.testing.server import TangramEnded

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["run_chaos"]

EX_INTERRUPTED = 130
"""The exit status of what a Ctrl-C ended, as a shell has it: 128 and the signal's number."""

REFRESH = 8
"""Times a second that the table is drawn."""

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
        The exit status: 0, 1 if an invariant broke or nothing could be struck, 130 if it was interrupted and
        all held so far.

    Raises:
        ConfigError: the configuration is wrong, or a fault or a plugin is not known.
        OperatorError: the server does not start.
    """
    unknown = [Fault(no_such_fault(name), "--faults", "faults") for name in faults if name not in FAULTS]
    if unknown:
        raise ConfigError(unknown, about="command line")
    path = find_config_file(config_file, os.environ, Path.cwd())
    loaded = load_config(path, os.environ)  # every fault of the file is told here, as by `serve`
    tables = {} if path is None else tomllib.loads(path.read_text())
    _be_quiet()
    settings: dict[str, Any] = {"seed": seed, "duration": duration, "faults": list(faults), "only": only}
    try:
        campaign = _show_while(list(loaded.config.core.plugins), tables, **settings)
    except PluginError as error:
        raise OperatorError(
            f"{error}: a server would run without it; a campaign of it would show nothing"
        ) from None
    except LookupError as error:
        raise ConfigError([Fault(str(error), "--only", "only")], about="command line") from None
    except TangramEnded as error:
        raise OperatorError(f"{error}: see what `tangram serve` says of it") from None
    _write(campaign, report)
    if campaign.broken or not (campaign.struck or campaign.interrupted):
        return 1
    return EX_INTERRUPTED if campaign.interrupted else 0


def _be_quiet() -> None:
    """The log is evidence here, and its lines would tear the table; the report has what happened."""
    structlog.configure(processors=[_drop], cache_logger_on_first_use=False)
    logging.getLogger().handlers[:] = [logging.NullHandler()]


def _drop(_logger: Any, _method: str, _event: Any) -> Any:
    raise structlog.DropEvent


def _show_while(plugins: list[str], tables: dict[str, Any], **settings: Any) -> Campaign:
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    if not console.is_terminal:
        return trio.run(lambda: run_campaign(plugins, tables, until=_wait_signal, **settings))
    shown: list[Campaign] = []

    def show() -> Table | str:
        return _table(shown[0]) if shown else "starting ..."

    with Live(console=console, refresh_per_second=REFRESH, get_renderable=show):

        async def main() -> Campaign:
            def news(campaign: Campaign) -> None:
                shown[:] = [campaign]

            return await run_campaign(plugins, tables, on_news=news, until=_wait_signal, **settings)

        shown[:] = [trio.run(main)]
    return shown[0]


async def _wait_signal() -> None:
    """Until somebody asks for the end. After that the signals mean again what they mean anywhere: who asks
    twice does not want to wait.
    """
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _number in signals:
            return


def _table(campaign: Campaign) -> Table:
    from rich.table import Table

    down = ", ".join(campaign.down) or "nobody"
    now = campaign.now or "nothing"
    caption = f"strikes now: {now}; down now: {down}"
    table = Table(title=f"tangram chaos, seed {campaign.seed}", caption=caption, expand=False)
    table.add_column("fault")
    table.add_column("healed after", justify="right")
    table.add_column("outcome")
    for struck in campaign.struck[-SHOWN_FAULTS:]:
        colour = {"up": "green", "broken": "red"}.get(struck.outcome, "yellow")
        table.add_row(struck.name, f"{struck.healed * 1000:.0f} ms", f"[{colour}]{struck.outcome}[/]")
    restarts = ", ".join(f"{name} {count}" for name, count in campaign.restarts.most_common())
    table.add_section()
    table.add_row(f"{len(campaign.struck)} faults; crashes", "", restarts or "none")
    table.add_row("connections", str(campaign.seen.connections), f"{campaign.seen.refused} refused")
    table.add_row("messages", str(len(campaign.seen.messages)), "")
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
    for name, why in campaign.skipped.items():
        sys.stderr.write(f"left out: {name}: {why}\n")
    sys.stdout.write(f"{len(campaign.struck)} faults, seed {campaign.seed}: {_verdict(campaign)}{files}\n")


def _verdict(campaign: Campaign) -> str:
    if campaign.broken:
        found = "broken"
    else:
        found = "held" if campaign.struck or campaign.interrupted else "nothing could be struck"
    return f"{found} (interrupted)" if campaign.interrupted else found
