"""The output of commands: tables on a terminal, JSON lines in a pipe."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "bytes_text",
    "duration",
    "is_terminal",
    "make_table",
    "print_json",
    "print_table",
    "tone",
    "write",
]

_GOOD: Final = frozenset({"running", "finished", "up", "ready", "ok", "loaded"})
_BAD: Final = frozenset({"quarantined", "not ready", "not loaded", "failed", "stubborn"})


def is_terminal(*, as_json: bool = False) -> bool:
    """Return whether to print for a person: to a terminal, and not as JSON."""
    return not as_json and sys.stdout is not None and sys.stdout.isatty()


def print_json(records: Iterable[object]) -> None:
    """Print one JSON document a line, each at once."""
    for record in records:
        write(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")


def write(text: str) -> None:
    """Write to standard output; end with 141 if the reader of the pipe has ended."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # As a shell reports a program that SIGPIPE ended, which Python ignores.
        sys.exit(128 + signal.SIGPIPE)


def make_table(
    columns: Mapping[str, str], rows: Iterable[Sequence[object]], *, title: str | None = None
) -> Table:
    """Return a table.

    Args:
        columns: headings, each with ``left`` or ``right``.
        rows: the cells; None is an empty one.
        title: a line above it.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, title=title, title_justify="left", pad_edge=False, header_style="bold")
    for name, side in columns.items():
        table.add_column(name, justify="right" if side == "right" else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell), style=tone(cell)) for cell in row))
    return table


def print_table(
    columns: Mapping[str, str], rows: Iterable[Sequence[object]], *, title: str | None = None
) -> None:
    """Print a table on the terminal; the arguments are those of ``make_table``."""
    from rich.console import Console

    Console().print(make_table(columns, rows, title=title))


def tone(cell: object) -> str:
    """Return the colour of a cell: states are green, red or yellow."""
    if cell in _GOOD:
        return "green"
    if cell in _BAD:
        return "red"
    return "yellow" if cell in {"starting", "waiting", "stopping", "waiting for redis"} else ""


def duration(seconds: float) -> str:
    """Return a duration in its two largest units: ``3 d 4 h``, ``5 min 2 s``."""
    whole = int(seconds)
    units = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    parts = []
    for size, name in units:
        count, whole = divmod(whole, size)
        if count:
            parts.append(f"{count} {name}")
    return " ".join(parts[:2]) or "0 s"


def bytes_text(count: float) -> str:
    """Return a number of bytes with its unit: ``1.5 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError
