"""Log records are readable and contain no secrets."""

import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from tangram.cli.logs import configure_logging, redact


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_a_record_names_its_room_and_values(capsys: pytest.CaptureFixture[str]) -> None:
    """A line for people holds the level, the event, the logger and the values."""
    configure_logging("INFO")

    structlog.get_logger("tangram.bus").warning("redis is away", url="redis://127.0.0.1:1")

    (line,) = lines(capsys)
    assert all(
        part in line for part in ["warning", "redis is away", "tangram.bus", "url=redis://127.0.0.1:1"]
    )


def test_json_is_an_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Each record, exceptions included, is one line with a JSON object."""
    configure_logging("INFO", "json")

    structlog.get_logger("tangram.x").info("here", cause=ValueError("seven"))

    (line,) = lines(capsys)
    record = json.loads(line)
    assert record["event"] == "here"
    assert record["cause"] == "ValueError('seven')"


def test_records_below_the_level_are_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    """``log_level`` holds for tangram's records and for those of the standard library."""
    configure_logging("ERROR")

    structlog.get_logger("tangram.x").warning("quiet")
    logging.getLogger("quart").warning("quiet too")

    assert lines(capsys) == []


def test_records_of_the_standard_library_look_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """A record of a library looks like one of tangram."""
    configure_logging("INFO")

    logging.getLogger("some.library").warning("hello %s", "there")

    (line,) = lines(capsys)
    assert "hello there" in line
    assert "some.library" in line


@pytest.mark.parametrize(
    "values",
    [
        {"token": "s3cret"},
        {"jwt_secret": "s3cret"},
        {"url": "redis://user:s3cret@host:6379/0"},
        {"path": "/websocket?userToken=s3cret&vsn=2.0.0"},
        {"headers": {"Authorization": "Bearer s3cret"}},
        {"many": ["x", "token=s3cret"]},
    ],
)
def test_secrets_do_not_reach_the_log(values: dict[str, object]) -> None:
    """A secret is hidden in keys, texts, nested values and arguments."""
    assert "s3cret" not in repr(redact(None, "info", dict(values)))


def test_a_secret_in_a_traceback_is_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    """The text of an exception is redacted as any other text."""
    configure_logging("INFO")
    log = structlog.get_logger("tangram.x")

    try:
        raise ValueError("cannot reach redis://user:s3cret@host")
    except ValueError:
        log.exception("failed")

    text = "\n".join(lines(capsys))
    assert "Traceback" in text
    assert "s3cret" not in text


def test_a_new_level_holds_for_loggers_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    """A reload with another ``log_level`` changes loggers that are in use already."""
    configure_logging("INFO")
    log = structlog.get_logger("tangram.x")
    log.info("first")
    log.debug("not yet")

    configure_logging("DEBUG")
    log.debug("now")
    configure_logging("ERROR")
    log.warning("no more")

    assert [line.split("]")[1].split()[0] for line in lines(capsys)] == ["first", "now"]


class DeadStream(io.StringIO):
    """The standard error of a process whose terminal was closed or whose reader has ended."""

    def write(self, _text: str) -> int:
        raise BrokenPipeError

    def isatty(self) -> bool:
        return True


CLOSED = io.StringIO()
CLOSED.close()


@pytest.mark.parametrize("stream", [DeadStream(), CLOSED, None], ids=["dead", "closed", "none"])
def test_a_log_that_cannot_be_written_raises_nothing(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO | None
) -> None:
    """Lines are lost without an exception, from structlog and from the standard library."""
    monkeypatch.setattr(sys, "stderr", stream)

    configure_logging("INFO")
    structlog.get_logger("tangram.x").error("unheard")
    logging.getLogger("some.library").error("unheard")


def test_the_frames_of_a_crash_are_lines_below_the_record(capsys: pytest.CaptureFixture[str]) -> None:
    """People read one frame a line; programs get a list."""
    frames = ["/srv/plugin.py:3 in poll", "/usr/lib/python3/json/decoder.py:1 in decode"]
    for style in ("console", "json"):
        configure_logging("INFO", style)
        structlog.get_logger("test").error("child crashed", cause="ValueError", traceback=list(frames))
    *console, as_json = capsys.readouterr().err.splitlines()

    assert console[-2:] == [f"    {frame}" for frame in frames]
    assert "traceback" not in console[0]
    assert json.loads(as_json)["traceback"] == frames


def test_a_logger_has_a_level_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """``[log] levels`` hold for a logger and those below it; the longest name wins."""
    levels = {"tangram.http": "debug", "tangram.http.quiet": "error", "some.library": "debug", "other": "off"}
    configure_logging("WARNING", levels=levels)

    for name in ("tangram.http", "tangram.http.quiet", "tangram.httpx", "other.part"):
        structlog.get_logger(name).info("said")
    logging.getLogger("some.library.part").debug("said by the library")
    logging.getLogger("another.library").debug("not said")
    logging.getLogger("another.library").warning("said aloud")

    found = lines(capsys)
    assert ["tangram.http" in found[0], "some.library.part" in found[1], "another" in found[2]] == [True] * 3
    assert len(found) == 3


@pytest.mark.parametrize(("style", "common"), [("console", True), ("json", False)])
def test_the_access_log_has_the_format_of_the_log(
    capsys: pytest.CaptureFixture[str], style: Any, common: bool
) -> None:
    """Lines in the Common Log Format for people and their tools, JSON for programs; no level hides them."""
    configure_logging("ERROR", style)
    log = structlog.get_logger("tangram.access")
    log.info(
        "request", method="GET", path='/a"\n\x1b[2Jb', version="1.1", status=200, client="192.0.2.1", bytes=5
    )
    log.info("request", method="GET", path="/", version="2", status=304, client="::1")

    first, second = lines(capsys)
    if common:
        pattern = r'192\.0\.2\.1 - - \[\d\d/\w{3}/\d{4}(:\d\d){3} [+-]\d{4}\] "GET (\S+) HTTP/1\.1" 200 5'
        found = re.fullmatch(pattern, first)
        assert found is not None
        assert found[2] == r"/a\x22\x0a\x1b[2Jb"
        assert second.endswith('"GET / HTTP/2" 304 -')
    else:
        assert json.loads(first)["status"] == 200
        assert json.loads(second)["client"] == "::1"


def test_the_format_of_the_access_log_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    """``[log] access_format`` wins over the format of the log."""
    configure_logging("INFO", "console", access="json")
    structlog.get_logger("tangram.access").info("request", method="GET", path="/", status=200)

    (line,) = lines(capsys)
    assert json.loads(line)["path"] == "/"
