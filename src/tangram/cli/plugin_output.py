"""The plugin behind a log record or a printed line, found by the running code.

1. ``print`` in a plugin becomes a record under the plugin's name, because lines without an origin help nobody
   at night. Other output of the process passes unchanged.
2. A call stack is walked outwards until a file belongs to a plugin. The stack of a task contains the
   functions that await each other, so that a library called by a plugin counts as the plugin's.
3. Output must never fail: a stream that cannot be written to loses the line.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, TextIO, cast

import structlog

__all__ = ["PluginFinder", "find_plugin", "plugin_finder", "tagged_output"]

MAX_FRAMES: Final = 64
"""Frames that are walked: the code of a plugin is never that far below a library's."""

MAX_LINE: Final = 8192
"""Characters of an unfinished line after which it is written."""


class PluginFinder:
    """Finds the plugin to which the running code belongs."""

    def __init__(self) -> None:
        self._owner_of: Callable[[str], str | None] = lambda _filename: None
        self._known: dict[str, str | None] = {}
        self._importing: str | None = None

    def use(self, owner_of: Callable[[str], str | None]) -> None:
        """Use the plugins that have been loaded; ``owner_of`` returns the plugin of a source file."""
        self._owner_of, self._known, self._importing = owner_of, {}, None

    def note_import(self, plugin: str) -> None:
        """Attribute output to a plugin whose files are not known yet, until all are loaded."""
        self._importing = plugin

    def of_file(self, filename: str) -> str | None:
        """Return the plugin that a source file belongs to."""
        try:
            return self._known[filename]
        except KeyError:
            found = self._known[filename] = self._owner_of(filename)
            return found

    def of_frame(self, frame: FrameType | None) -> str | None:
        """Return the innermost plugin on a call stack."""
        for _ in range(MAX_FRAMES):
            if frame is None:
                break
            found = self.of_file(frame.f_code.co_filename)
            if found is not None:
                return found
            frame = frame.f_back
        return self._importing


plugin_finder: Final = PluginFinder()
"""The finder of this process."""


def find_plugin() -> str | None:
    """Return the plugin whose code called this."""
    return plugin_finder.of_frame(sys._getframe(1))  # noqa: SLF001 - the documented way to see the caller


class TaggedStream:
    """Stands for ``sys.stdout`` or ``sys.stderr``: lines of plugins become log records.

    Args:
        original: the stream for all other output.
        name: ``stdout`` or ``stderr``.
    """

    def __init__(self, original: TextIO | None, name: str) -> None:
        self.original = original
        """Where log records are written, which must not come back here."""
        self._name = name
        self._parts: dict[tuple[str, int], str] = {}

    def write(self, text: str) -> int:
        """Write text of a plugin as records, a line each, and other text unchanged."""
        plugin = find_plugin()
        if plugin is None:
            return 0 if self.original is None else self.original.write(text)
        key = (plugin, threading.get_ident())
        *lines, rest = (self._parts.pop(key, "") + text).split("\n")
        if len(rest) > MAX_LINE:
            lines, rest = [*lines, rest], ""
        if rest:
            self._parts[key] = rest
        for line in lines:
            self._record(plugin, line.rstrip("\r"))
        return len(text)

    def _record(self, plugin: str, line: str) -> None:
        if line:
            level = "warning" if self._name == "stderr" else "info"
            log = structlog.get_logger(f"plugin.{plugin}")
            getattr(log, level)(line, plugin=plugin, stream=self._name)

    def flush(self) -> None:
        """Flush the original stream."""
        if self.original is not None:
            self.original.flush()

    def __getattr__(self, name: str) -> Any:
        # ``fileno``, ``isatty``, ``encoding``, ``buffer`` and the others are those of the original.
        if self.original is None:
            raise AttributeError(name)
        return getattr(self.original, name)


@contextmanager
def tagged_output() -> Iterator[None]:
    """Tag the lines that plugins print in this block."""
    before = sys.stdout, sys.stderr
    sys.stdout = cast("TextIO", TaggedStream(sys.stdout, "stdout"))
    sys.stderr = cast("TextIO", TaggedStream(sys.stderr, "stderr"))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
