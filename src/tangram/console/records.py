"""The last records of the log, for the page of the console.

The processor `keep` stands in the chain of structlog after secrets were hidden. Records may come from any
thread: appending to a deque and copying it are atomic.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import msgspec

__all__ = ["KEPT", "MAX_RECORD", "RECORDS", "RecordRing", "keep"]

KEPT: Final = 1000
"""Records that are kept."""

MAX_RECORD: Final = 1024
"""Bytes of one record; the fields of a longer one are cut. All records take 1 MB at most."""

MAX_FIELD: Final = 200
"""Characters of each text in a record that was cut."""

CUT: Final = "further fields are in the log"
"""Stands for the fields that do not fit."""

_SHOWN_ELSEWHERE: Final = frozenset({"event", "level", "logger", "plugin", "timestamp"})


def _represented(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - the class of a plugin's author may raise anything
        return f"({type(value).__name__})"


_encode: Final = msgspec.json.Encoder(enc_hook=_represented).encode


class RecordRing:
    """The last records, each as JSON."""

    def __init__(self) -> None:
        self._records: deque[tuple[int, bytes]] = deque(maxlen=KEPT)
        self._numbers = itertools.count(1)

    def take(self, event: dict[str, Any], at: float) -> None:
        """Keep a record; one that cannot be written as JSON is kept as text."""
        number = next(self._numbers)
        record: dict[str, Any] = {
            "n": number,
            "at": at,
            "level": str(event.get("level", "info")),
            "event": str(event.get("event", "")),
            "logger": str(event.get("logger", "")),
            "plugin": str(event.get("plugin", "")),
            "fields": {key: value for key, value in event.items() if key not in _SHOWN_ELSEWHERE},
        }
        try:
            text = _encode(record)
        except (TypeError, ValueError, RecursionError, msgspec.MsgspecError):
            text = b""
        if not text or len(text) > MAX_RECORD:
            text = _cut(record)
        self._records.append((number, text))

    def after(self, number: int) -> Sequence[tuple[int, bytes]]:
        """Return the records with a higher number, oldest first."""
        return [record for record in list(self._records) if record[0] > number]

    @property
    def size(self) -> int:
        """Bytes of all records."""
        return sum(len(text) for _, text in list(self._records))


def _cut(record: dict[str, Any]) -> bytes:
    """Return a record within the bound, with as many of its fields as fit."""
    short = {**record, "event": _plain(record["event"]), "plugin": _plain(record["plugin"])}
    fields: dict[str, str] = {}
    left = MAX_RECORD - len(_encode({**short, "fields": {"cut": CUT}}))
    for key, value in record["fields"].items():
        name, text = _plain(str(key)), _plain(value if isinstance(value, str) else _represented(value))
        left -= len(_encode({name: text}))
        if left < 0:
            fields["cut"] = CUT
            break
        fields[name] = text
    return _encode({**short, "logger": "", "fields": fields})


def _plain(text: str) -> str:
    """Return the beginning of a text in ASCII, which has as many bytes as characters."""
    return ascii(text[:MAX_FIELD])[1:-1][:MAX_FIELD]


RECORDS: Final = RecordRing()
"""The records of this process: it has one log."""


def keep(_logger: object, _method: str, event: Any) -> Any:
    """Keep a record and pass it on; this is a structlog processor."""
    RECORDS.take(event, time.time())
    return event
