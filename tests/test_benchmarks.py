"""The conclusions that benchmarks draw from their measurements; ``make bench`` measures."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
import trio
from benchmarks import __main__ as bench
from benchmarks import presence, reload, singles
from benchmarks.figures import recoveries
from benchmarks.figures.judging import Watched
from benchmarks.lib.loads import EACH, Clients, count_disordered
from benchmarks.lib.peers import Mosquitto, Nats, Nchan
from benchmarks.lib.processes import Process, cpu_seconds, running
from benchmarks.lib.program import add_piece
from benchmarks.lib.report import FIGURES, Promise, Results, Target, conclude
from benchmarks.singles import aircraft

ROOT = Path(__file__).parents[1]


def test_every_benchmark_is_run() -> None:
    """``make bench`` runs every file of the folder."""
    found = {path.stem for path in (ROOT / "benchmarks").glob("[a-z]*.py")}
    assert found == set(bench.NAMES)


@pytest.mark.parametrize(
    ("value", "at_least", "met"),
    [(12.0000000001, False, True), (12.01, False, False), (11.0, True, False), (12.0, True, True)],
)
def test_a_promise_is_met_up_to_its_bound(value: float, at_least: bool, met: bool) -> None:
    """A figure that equals its bound, up to rounding, meets the promise."""
    assert Target("CPU", value, 12, "us", at_least=at_least).met is met


def test_a_figure_without_a_measurement_is_neither_met_nor_missed(capsys: pytest.CaptureFixture[str]) -> None:
    """A run of some workloads does not fail because of the others."""
    promise = Target("CPU", math.nan, 12, "us").promise()
    assert promise.met is None
    with pytest.raises(SystemExit) as exit_:
        conclude([promise])
    assert exit_.value.code == 0
    assert "missed" not in capsys.readouterr().out


def test_losses_are_summed_and_costs_are_medians() -> None:
    """Losses of all runs are added up, because a median could hide one."""
    results = Results()
    for lost, cpu in ((0, 1.0), (5, 3.0), (0, 2.0)):
        results.add("load", "tangram", {"lost": lost, "cpu_us": cpu})

    assert results.median("load", "tangram") == {"lost": 5, "cpu_us": 2.0}


def test_pieces_of_a_benchmark_are_one_result(tmp_path: Path) -> None:
    """Samples of all runs are kept in order, and a busy machine is told whichever run had it."""
    piece = Results()
    piece.add("load", "tangram", {"cpu_us": 1.0})
    add_piece(tmp_path / "pieces", piece, "Other programs used 60 %.")
    piece = Results()
    piece.add("load", "tangram", {"cpu_us": 2.0})
    piece.add("load", "C loop", {"cpu_us": 4.0})
    every, where = add_piece(tmp_path / "pieces", piece, "Nothing else was running.")

    assert every.samples == {
        "load": {"tangram": [{"cpu_us": 1.0}, {"cpu_us": 2.0}], "C loop": [{"cpu_us": 4.0}]}
    }
    assert where == "Other programs used 60 %."


def received(*numbers: int) -> bytes:
    return b"".join(b'$9\r\n{"n":%d,"t":1,"z":"zz"}\r\n' % number for number in numbers)


def test_a_subscriber_notices_duplicates_and_late_messages() -> None:
    """Pushes are counted for each client; a refused push leaves a gap, no disorder."""
    two = 2 * EACH
    assert count_disordered(received(0, two, 1, two + 1, 5, two + 2)) == 0
    assert count_disordered(received(0, 1, 1, 2)) == 1
    assert count_disordered(received(0, 2, 1, two, 3)) == 1


def watched(*said: dict[str, object], sent: list[int] | None = None) -> Watched:
    page = Watched(sent)
    for one in said:
        page.take(one)
    return page


JOINED: dict[str, object] = {"recovered": True}
GAP: dict[str, object] = {"recovered": False, "reason": "epoch"}


def test_a_page_of_the_recoveries_notices_lost_messages() -> None:
    """A missing number is lost unless a join says so, or Redis may not have taken it."""
    assert watched(JOINED, {"n": 1}, {"n": 4}).lost == 2
    assert watched(JOINED, {"n": 1}, JOINED, {"n": 3}).lost == 1
    assert watched(JOINED, {"n": 1}, {"n": 4}, sent=[1, 3, 4]).lost == 1
    told = watched(JOINED, {"n": 1}, GAP, {"n": 4})
    assert (told.lost, told.told, told.recovered) == (0, 1, 1)
    assert watched({"recovered": False}, {"n": 1}, JOINED).recovered == 1


def test_a_page_of_the_recoveries_knows_the_repeats_of_the_last_write() -> None:
    """Messages behind the last position may come again after a join; no others may, and none without one."""
    allowed = watched(JOINED, {"n": 1}, {"at": "e.1"}, {"n": 2}, JOINED, {"n": 2}, {"n": 3})
    assert (allowed.repeated, allowed.excessive, allowed.disordered) == (1, 0, 0)
    assert watched(JOINED, {"n": 1}, {"at": "e.1"}, JOINED, {"n": 1}).excessive == 1
    assert watched(JOINED, {"n": 2}, {"n": 1}).disordered == 1


def test_a_page_of_the_recoveries_counts_the_messages_that_a_position_covers() -> None:
    """A message that was not recorded yet, or was cut off again at once, may come twice, and no other."""
    first: dict[str, object] = {"recovered": False, "position": "e.0"}
    early: list[dict[str, object]] = [first, {"n": 1}, {"n": 2}, {"at": "e.1"}]
    again: dict[str, object] = {"recovered": True, "position": "e.1"}

    assert watched(*early, again, {"n": 2}).excessive == 0
    assert watched(*early, again, {"n": 1}, {"n": 2}).excessive == 1
    assert watched(*early, {"at": "e.2"}, {"recovered": True, "position": "e.2"}, {"n": 2}).excessive == 1
    assert watched(*early, again, {"n": 2}, again, {"n": 2}, {"n": 3}).excessive == 0


@pytest.mark.slow
def test_phoenix_recovers_through_ten_kinds_of_fault() -> None:
    """A short run of the benchmark: nothing is lost, out of order, or repeated beyond the last write."""
    figures = trio.run(recoveries.measure, 1, 4, 32)

    assert [str(one) for one in figures if one.ok is False] == []
    assert len(recoveries.FAULTS) == 10


SCRIPT = """
import json, os, sys
print("measuring", *sys.argv[1:])
with open(os.environ["{figures}"], "a") as file:
    file.write(json.dumps({{"what": "{name}", "measured": "1", "target": "<= 0", "met": {met}}}) + "\\n")
sys.exit({status})
"""


def test_a_miss_ends_nothing_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The next benchmark runs after a miss or a crash; the end names both, with status 1."""
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "first.py").write_text(SCRIPT.format(figures=FIGURES, name="speed", met=False, status=1))
    (folder / "second.py").write_text("raise SystemExit('no compiler')")
    (folder / "third.py").write_text(SCRIPT.format(figures=FIGURES, name="memory", met=True, status=0))
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(bench, "NAMES", ("first", "second", "third"))
    monkeypatch.setattr(bench, "machine", lambda: "a machine.")
    monkeypatch.setattr("sys.argv", ["bench", "--quick"])
    with pytest.raises(SystemExit) as exit_:
        bench.main()
    output = capfd.readouterr().out

    assert exit_.value.code == 1
    assert output.count("measuring --quick") == 2
    assert "missed: speed" in output
    assert "broken: benchmarks/second.py" in output
    assert "2 promises, 1 missed" in output
    table = (tmp_path / "results" / "quick" / "promised.md").read_text()
    assert "| speed | 1 | &le; 0 | **missed** |" in table
    assert "| memory | 1 | &le; 0 | met |" in table


def test_promises_are_left_where_they_are_gathered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each benchmark appends its promises to one file, and ends with 1 if it missed one."""
    path = tmp_path / "figures"
    monkeypatch.setenv(FIGURES, str(path))
    for met in (True, False):
        with pytest.raises(SystemExit) as exit_:
            conclude([Promise("speed", "1 us", "<= 2 us", met)])
        assert exit_.value.code == (0 if met else 1)

    assert [json.loads(line)["met"] for line in path.read_text().splitlines()] == [True, False]


def test_ratios_are_taken_within_each_round() -> None:
    """Work beside the measurement slows both servers of a round, so it falls out of their ratio."""
    results = Results()
    for ours, theirs in ((1.0, 2.0), (50.0, 100.0), (3.0, 6.0)):
        results.add("load", "tangram", {"cpu_us": ours})
        results.add("load", "peer", {"cpu_us": theirs})

    assert results.ratio("load", "tangram", "peer", "cpu_us") == 0.5
    assert math.isnan(results.ratio("load", "tangram", "absent", "cpu_us"))


def test_servers_are_left_out_of_loads_that_they_do_not_serve() -> None:
    """The published server does not join thousands of clients in time; a quick run measures few of them."""
    few, many = singles.Single(100, 1, 1, ()), singles.Single(5_000, 1, 1, ())
    whole, quick = Namespace(quick=False, only=[]), Namespace(quick=True, only=[])
    named = Namespace(quick=True, only=["5,000"])

    assert [singles.serves("ws", many, it) for it in (whole, quick, named)] == [True, False, True]
    assert [singles.serves(singles.PUBLISHED, it, whole) for it in (few, many)] == [True, False]


def test_processor_time_is_counted_finely() -> None:
    """The time of a process is that of its own clock, far below the 10 ms of a tick, children included."""
    spin = "import time; until = time.process_time() + 0.012\nwhile time.process_time() < until: pass"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {spin!r}])"
    before, began = cpu_seconds(os.getpid()), time.process_time()
    subprocess.run([sys.executable, "-c", child], check=True)
    own = time.process_time() - began
    spent = cpu_seconds(os.getpid()) - before

    assert spent > own + 0.012
    first = cpu_seconds(os.getpid())
    assert cpu_seconds(os.getpid()) > first


def test_peers_get_messages_in_their_own_protocols() -> None:
    """NATS gets text, MQTT a packet whose length has groups of seven bits, nchan a request."""
    process = Process([sys.executable, "-c", ""])
    try:
        nats, mqtt, nchan = (kind("peer", process, 1, 2) for kind in (Nats, Mosquitto, Nchan))
        assert nats.encode("t7", b"{}") == b"PUB t7 2\r\n{}\r\n"
        assert mqtt.encode("t7", b"x" * 300) == b"\x30" + b"\xb0\x02" + b"\x00\x02t7" + b"x" * 300
        assert nchan.encode("t7", b"{}").startswith(b"POST /pub/t7 HTTP/1.1\r\n")
        assert bytes.fromhex(nats.lines(2).split()[3]).splitlines()[1] == b"SUB t1 1"
    finally:
        process.end()


def test_aircraft_are_the_same_in_each_run() -> None:
    """The document has about the size that was asked for, and every run measures the same one."""
    document = aircraft(20_000)

    assert document == aircraft(20_000)
    assert 20_000 <= len(document) < 20_400
    assert len(json.loads(document)["z"]) > 80


CLIENTS = r"""
import hashlib, base64, socket, sys
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
for number in range(3):
    client, _ = server.accept()
    data = b""
    while b"\r\n\r\n" not in data:
        data += client.recv(4096)
    if number == 1:
        client.sendall(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")
        client.close()
        continue
    client.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
    assert client.recv(4096)
    reply = b'["1","1","t","phx_reply",{"status":"ok","response":{}}]'
    client.sendall(bytes([0x81, len(reply)]) + reply)
    if number == 0:
        sys.stdin.readline()
        client.close()
sys.stdin.readline()
"""


@pytest.mark.slow
def test_clients_come_back_until_they_have_joined_again() -> None:
    """A client returns after its end, also after a refusal, which is counted."""
    with running(Process([sys.executable, "-c", CLIENTS], pipes=True)) as server:
        clients = Clients(int(server.read_line()), "token", 1, topic="t")
        clients.tell("return")
        server.write_line("end")
        back = clients.process.read_json()
        clients.end()

    assert back["refused"] == 1
    assert 0.02 <= back["seconds"] < 20


@pytest.mark.slow
async def test_each_kind_of_save_is_seen_by_browsers_that_stay_joined() -> None:
    """``tangram dev`` applies each kind of change; reloads leave no thread and no descriptor."""
    times, lost = await reload.measure_saves(clients=5, rounds=1)
    before, after, _median, lost_too = await reload.measure_reloads(clients=5, reloads=5, warm=5, idle=0.5)

    assert {name: len(values) for name, values in times.items()} == dict.fromkeys(reload.KINDS, 1)
    assert (lost, lost_too) == (0, 0)
    assert after.descriptors <= before.descriptors
    assert after.threads <= before.threads


@pytest.mark.slow
async def test_presence_of_two_nodes_is_measured(tmp_path: Path) -> None:
    """Both nodes see each other's members, and numbers cost a small part of lists."""
    with presence.open_nodes(tmp_path / "lists") as (valkey, nodes):
        (change,) = await presence.watch_changes(nodes, 1)
        lists = presence.storm(nodes, 40)
        assert presence.count_commands(valkey.port, 2.5) > 0
    with presence.open_nodes(tmp_path / "numbers", presence.COUNTED) as (_, nodes):
        numbers = presence.storm(nodes, 40)

    assert 0 < change < 20_000
    assert lists["closed"] == numbers["closed"] == 0
    assert 0 < numbers["megabytes"] < presence.counted_bound(40, numbers)
    assert lists["megabytes"] > 40 * 40 * 20 / 1e6
