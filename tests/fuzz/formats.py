"""The configuration file, queries, cookies, JSON bodies and the Forwarded header."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import tomllib
from codecs import BOM_UTF8
from collections.abc import Hashable
from pathlib import Path
from urllib.parse import parse_qsl

import msgspec

from tangram.config.load import load_config
from tangram.errors import ConfigError
from tangram.routing.connection import parse_cookies, parse_query
from tangram.routing.exceptions import InvalidRequest
from tangram.routing.json_slices import JSONSlices
from tangram.routing.request import decode_json
from tangram.web.forwarded import read_forwarded
from tests.fuzz.pieces import TOO_LARGE, read_json

__all__ = ["check_config", "check_cookies", "check_forwarded", "check_json_body", "check_query"]


class _Folder:
    """A temporary folder for each process, removed at its end."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._process = 0

    @property
    def file(self) -> Path:
        if self._path is None or self._process != os.getpid():
            self._path, self._process = Path(tempfile.mkdtemp(prefix="tangram-fuzz-")), os.getpid()
            atexit.register(shutil.rmtree, self._path, ignore_errors=True)
        return self._path / "tangram.toml"


FOLDER = _Folder()


def check_config(data: bytes) -> Hashable:
    """A file is a configuration, or a ConfigError whose faults have places and no password."""
    FOLDER.file.write_bytes(data)
    try:
        loaded = load_config(FOLDER.file, {})
    except ConfigError as error:
        faults, text = error.faults, str(error)
    else:
        tomllib.loads(data.decode("utf-8-sig"))
        return len(loaded.warnings)
    assert faults
    assert text
    assert all(fault.path for fault in faults)
    return tuple(sorted({fault.kind for fault in faults}))


def check_query(data: bytes) -> Hashable:
    """A query is refused, or is read as urllib reads it."""
    try:
        pairs = parse_query(data)
    except InvalidRequest as error:
        return error.problems[0].type
    expected = parse_qsl(
        data.decode("latin-1"), keep_blank_values=True, encoding="utf-8", errors="surrogateescape"
    )
    if data.isascii():
        assert pairs == expected
    return min(len(pairs), 5)


def check_json_body(data: bytes) -> Hashable:
    """A body is refused, or an ordinary parser reads the same value; so it is in slices of a few bytes."""
    in_slices = _decode_slices(data.removeprefix(BOM_UTF8))
    try:
        value = decode_json(data)
    except InvalidRequest as error:
        (problem,) = error.problems
        assert in_slices is None
        assert all(0 <= place <= len(data) for place in problem.loc if isinstance(place, int))
        return problem.msg[:20]
    assert in_slices == repr(value)
    expected = read_json(data)
    if expected is TOO_LARGE:
        return "large"
    assert value == expected
    return type(value).__name__


def _decode_slices(data: bytes) -> str | None:
    """Return the representation of the value, or None if it is refused."""
    slices = JSONSlices(data, size=6)
    try:
        while not slices.done:
            slices.decode_next()
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return repr(slices.value)


def check_cookies(data: bytes) -> Hashable:
    """Cookies are pairs of text, for any header."""
    cookies = parse_cookies([part.decode("latin-1") for part in data.split(b"\n")])
    assert not any(";" in text for pair in cookies.items() for text in pair)
    return min(len(cookies), 4)


def check_forwarded(data: bytes) -> Hashable:
    """Hops are read from the end; text that another client put in front does not change them."""
    text = data.decode("latin-1")
    hops = list(read_forwarded([text]))
    if text.count('"') % 2 == 0:
        behind = list(read_forwarded([f'for="x, {text}, for=192.0.2.7']))
        assert behind[0].address == "192.0.2.7"
    return len(hops), hops[0] if len(hops) == 1 and len(text) < 20 else None
