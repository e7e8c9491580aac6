"""``chaos``: inject faults into a configured server, and check that it keeps its promises."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from tangram.chaos.campaign import Campaign, run_campaign
from tangram.chaos.report import render_html
from tangram.cli.kit import keep_log, require_httpx
from tangram.cli.streams import write_line
from tangram.config import LoadedConfig, current_folder, find_config_file, load_config
from tangram.errors import ConfigError, Fault, OperatorError, PluginError
from tangram.groups import all_leaves_are
from tangram.testing.checks.invariants import INVARIANTS
from tangram.testing.faults.catalogue import FAULTS, Struck, no_such_fault
from tangram.testing.run.server import TangramEnded

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["run_chaos"]

EX_INTERRUPTED: Final = 130
"""The exit status after Ctrl-C, as in a shell: 128 plus the signal's number."""

REFRESH: Final = 8
"""The number of times a second that the table is drawn."""

SHOWN_FAULTS: Final = 12
"""The number of faults in the live table, the last ones."""

_WIDEST: Final = max(map(len, FAULTS))


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
        The exit status: 0; 1 if an invariant broke or no fault could be injected; 130 if it was interrupted
        while all invariants held, or twice, or before the campaign began.

    Raises:
        ConfigError: the configuration has faults, a fault or a plugin is not known, the duration is not
            above 0, or the report cannot be written.
        OperatorError: the server does not start, or httpx is not installed.
    """
    require_httpx()
    if wrong := [*_wrong_words(duration, faults), *_wrong_report(report)]:
        raise ConfigError(wrong, about="command line")
    path = find_config_file(config_file, os.environ, current_folder())
    loaded = load_config(path, os.environ)  # raises with every fault of the file, as `serve` does
    keep_log()
    settings: dict[str, Any] = {"seed": seed, "duration": duration, "faults": list(faults), "only": only}
    try:
        campaign = _show_while(loaded, **settings)
    except PluginError as error:
        raise OperatorError(
            f"{error}: a server would run without it, but a campaign without it tests nothing"
        ) from None
    except LookupError as error:
        raise ConfigError([Fault(str(error), "--only", "only")], about="command line") from None
    except TangramEnded as error:
        raise OperatorError(f"{error}: run `tangram serve` to see its log") from None
    except (KeyboardInterrupt, SystemExit, BaseExceptionGroup) as error:
        # The end was asked for a second time, or before anything had begun.
        if not all_leaves_are(error, KeyboardInterrupt, SystemExit):
            raise
        sys.stderr.write("interrupted: ended at once, without a report\n")
        return EX_INTERRUPTED
    _write(campaign, report)
    if not campaign.passed:
        return 1
    return EX_INTERRUPTED if campaign.interrupted else 0


def _wrong_words(duration: float, faults: Sequence[str]) -> Iterator[Fault]:
    for name in faults:
        if name not in FAULTS:
            yield Fault(no_such_fault(name), "--faults", "faults")
    if not duration > 0:  # true for NaN, too
        yield Fault(f"{duration:g} is not a duration; expected seconds above 0", "--duration", "duration")


def _wrong_report(report: Path | None) -> Iterator[Fault]:
    """Yield each reason why the report cannot be written; checked before the long campaign."""
    if report is None:
        return
    if not report.name:
        yield Fault(f"{str(report)!r} is no name; expected one like 'tangram-chaos'", "--report", "report")
        return
    try:
        report.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=report.parent):
            pass
    except OSError as error:
        what = f"cannot write into {str(report.parent)!r}: {error.strerror or error}; choose another folder"
        yield Fault(what, "--report", "report")
        return
    for file in _files(report):
        if file.exists() and not (file.is_file() and os.access(file, os.W_OK)):
            yield Fault(f"cannot write {str(file)!r}; choose another name", "--report", "report")


def _files(report: Path) -> tuple[Path, Path]:
    return report.with_suffix(".json"), report.with_suffix(".html")


def _show_while(loaded: LoadedConfig, **settings: Any) -> Campaign:
    from rich.console import Console
    from rich.live import Live

    run = partial(run_campaign, loaded.config.core.plugins, loaded, until=_wait_signal, **settings)
    console = Console(stderr=True)
    if not console.is_terminal:
        return trio.run(partial(run, on_news=_line_printer()))
    shown: list[Campaign] = []

    def show() -> Table | str:
        return _table(shown[0]) if shown else "starting ..."

    with Live(console=console, refresh_per_second=REFRESH, get_renderable=show):

        async def main() -> Campaign:
            def news(campaign: Campaign) -> None:
                shown[:] = [campaign]

            return await run(on_news=news)

        shown[:] = [trio.run(main)]
    return shown[0]


def _line_printer() -> Callable[[Campaign], None]:
    """Return a function that prints a line for each healed fault."""
    printed = 0

    def print_new(campaign: Campaign) -> None:
        nonlocal printed
        for struck in campaign.struck[printed:]:
            sys.stderr.write(f"{_line(campaign, struck)}\n")
            sys.stderr.flush()
        printed = len(campaign.struck)

    return print_new


def _line(campaign: Campaign, struck: Struck) -> str:
    at = struck.at - campaign.began
    return f"{at:7.1f} s  {struck.name:<{_WIDEST}}  {struck.outcome} after {struck.healed * 1000:.0f} ms"


async def _wait_signal() -> None:
    """Wait for the first INT or TERM; a second one then ends the process at once."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _number in signals:
            break
    write_line("interrupted: the present fault is healed first; interrupt again to end at once")


def _table(campaign: Campaign) -> Table:
    from rich.table import Table

    down = ", ".join(campaign.down) or "none"
    now = campaign.now or "none"
    caption = f"present fault: {now}; parts down: {down}"
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
    table.add_row("messages", str(len(campaign.seen.messages)), f"{campaign.seen.recoveries} recoveries")
    broken = Counter(one.invariant for one in campaign.broken)
    held = len(INVARIANTS) - len(broken)
    table.add_section()
    table.add_row(
        "invariants", f"{held} held", ", ".join(f"[red]{name}[/]" for name in broken) or "[green]all[/]"
    )
    return table


def _write(campaign: Campaign, report: Path | None) -> None:
    values = campaign.to_dict()
    if report is not None:
        as_json, as_html = _files(report)
        as_json.write_text(json.dumps(values, indent=1))
        as_html.write_text(render_html(values))
    for one in campaign.broken:
        sys.stderr.write(f"broken: {one}\n")
    files = "" if report is None else f"; see {_files(report)[1]}"
    for name, why in campaign.skipped.items():
        sys.stderr.write(f"left out: {name}: {why}\n")
    sys.stdout.write(f"{len(campaign.struck)} faults, seed {campaign.seed}: {_verdict(campaign)}{files}\n")


def _verdict(campaign: Campaign) -> str:
    if campaign.broken:
        found = "broken"
    else:
        found = "held" if campaign.struck or campaign.interrupted else "nothing could be struck"
    return f"{found} (interrupted)" if campaign.interrupted else found
