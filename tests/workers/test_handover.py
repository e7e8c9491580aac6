"""The parameters of a worker."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from tangram.errors import ConfigError
from tangram.workers.handover import (
    Handover,
    Snapshot,
    decode_lines,
    encode_line,
    receive_handover,
    worker_config,
)


def snapshot(folder: Path, text: str) -> Snapshot:
    return Snapshot(folder / "tangram.toml", text.encode(), {"TANGRAM_CORE__PLUGINS": '["demo"]'})


def handover(first: Snapshot, now: Snapshot) -> Handover:
    return Handover(
        name="2",
        node="web.2",
        first=first,
        snapshot=now,
        log_format="json",
        terminal=False,
        sockets=[(5, "127.0.0.1", 2346)],
        share=(6, 1),
        broker={"url": "redis://127.0.0.1:6379"},
        sys_path=["/somewhere"],
        beat=None,
    )


def test_parameters_pass_the_socket(tmp_path: Path) -> None:
    """The bytes behind them are kept, and keys of another version are ignored."""
    one = snapshot(tmp_path, '[server]\nport = 1\n# \u00fc, "quoted"')
    sent = handover(one, one)
    line = encode_line({**json.loads(sent.to_line()), "of_a_newer_version": 1})
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(line + b'{"broker": null}\n{"re')
        received, rest = receive_handover(theirs)

    assert attrs_of(received) == attrs_of(sent)
    assert decode_lines(rest) == ([{"broker": None}], b'{"re')


def attrs_of(one: Handover) -> object:
    return json.loads(one.to_line())


def test_a_parent_that_has_ended_is_noticed() -> None:
    """There are no parameters to wait for."""
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs, pytest.raises(EOFError):
        receive_handover(theirs)


def test_a_worker_has_the_file_as_its_parent_read_it(tmp_path: Path) -> None:
    """Sockets and broker stay as they were at the parent's start, and the node is the worker's own."""
    first = snapshot(tmp_path, "[server]\nport = 1111\nmax_body = 5\n[broker]\npassword = true")
    now = snapshot(tmp_path, "[server]\nport = 2222\nmax_body = 6")
    (tmp_path / "tangram.toml").write_text("faulty")

    config = worker_config(handover(first, now)).config

    assert config.server.port == 1111
    assert config.server.max_body == 6
    assert config.broker.password
    assert config.core.plugins == ("demo",)
    assert config.cluster.node == "web.2"
    assert config.source == tmp_path / "tangram.toml"


def test_faults_are_reported_as_in_a_single_process(tmp_path: Path) -> None:
    """With their places."""
    good, bad = snapshot(tmp_path, ""), snapshot(tmp_path, "[server]\nport = -1")

    with pytest.raises(ConfigError, match=r"@ server\.port"):
        worker_config(handover(good, bad))
