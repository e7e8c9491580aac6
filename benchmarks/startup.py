"""Measure the time until the server is ready, and its memory, beside the targets.

    python benchmarks/startup.py [--quick]

It starts ``python -m tangram serve`` with the demo and an embedded broker several times, and measures the
time from the start of the process to the first 200 of ``/-/readyz``. Then it joins the demo's topic, waits
for its values, and adds up the proportional set size of the server and its descendants. The exit status is
1 if a target is missed.

The first start is not counted: it compiles the byte-code, as the first start after an installation does.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import trio
from trio_websocket import open_websocket_url

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.lib.report import Target, conclude, promised

READY_SECONDS = 1.0  # median
MEMORY_MB = 80.0  # server and broker, demo joined
GIVE_UP = 30.0  # seconds


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def serving(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    config = folder / "tangram.toml"
    config.write_text(f'[core]\nplugins = ["tangram_demo"]\n[server]\nport = {port}\n[broker]\nport = 0\n')
    environ = {**os.environ, "XDG_STATE_HOME": str(folder / "state")}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)  # a user's byte-code is kept
    command = [sys.executable, "-m", "tangram", "serve", "--config", str(config)]
    process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(GIVE_UP)


def is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/-/readyz")
        return connection.getresponse().status == http.HTTPStatus.OK
    except OSError:
        return False
    finally:
        connection.close()


def wait_ready(process: subprocess.Popen[bytes], port: int, begun: float) -> float:
    """Return the seconds from *begun* to the first 200; asks every 2 ms."""
    while time.perf_counter() - begun < GIVE_UP:
        if is_ready(port):
            return time.perf_counter() - begun
        if process.poll() is not None:
            break
        time.sleep(0.002)
    sys.exit(f"the server was not ready within {GIVE_UP} s; its exit status: {process.poll()}")


async def join_demo(port: int, process: subprocess.Popen[bytes]) -> float:
    """Join the topic, wait for three of its values, and return the memory then, in MB."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request(
        "POST", "/token", json.dumps({"channel": "demo"}), {"content-type": "application/json"}
    )
    token = json.loads(connection.getresponse().read())["token"]
    connection.close()
    async with open_websocket_url(f"ws://127.0.0.1:{port}/websocket?vsn=2.0.0") as socket_:
        await socket_.send_message(json.dumps(["1", "1", "demo", "phx_join", {"token": token}]))
        values = 0
        with trio.fail_after(GIVE_UP):
            while values < 3:
                values += json.loads(await socket_.get_message())[3] == "metrics"
        return memory_mb(process.pid)


def memory_mb(pid: int) -> float:
    """Return the proportional set size of a process and its descendants, in MB."""
    above = psutil.Process(pid)
    return sum(pss_kb(it.pid) for it in (above, *above.children(recursive=True))) / 1000


def pss_kb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1.024
    return 0.0


def measure(runs: int) -> tuple[list[float], list[float]]:
    times, memories = [], []
    for run in range(runs + 1):
        with tempfile.TemporaryDirectory() as folder:
            port = free_port()
            begun = time.perf_counter()
            with serving(Path(folder), port) as process:
                ready = wait_ready(process, port, begun)
                if run == 0:
                    continue
                times.append(ready)
                memories.append(trio.run(join_demo, port, process))
    return times, memories


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="three starts instead of five")
    times, memories = measure(3 if parser.parse_args().quick else 5)
    print("starts, in seconds:", ", ".join(f"{it:.3f}" for it in times))
    ready = f"readyz after the start, median of {len(times)}"
    promises = [
        Target(ready, statistics.median(times), READY_SECONDS, "s").promise(),
        Target(
            "server, broker and guard, demo joined", statistics.median(memories), MEMORY_MB, "MB"
        ).promise(),
    ]
    print(promised(promises))
    conclude(promises)


if __name__ == "__main__":
    main()
