"""One server process."""

import sys

import pytest
import trio

from tangram.broker.process import describe_end, parse_log_line, start_server


@pytest.mark.parametrize(
    ("line", "level", "text"),
    [
        (
            "8:M 23 Nov 2026 01:07:22.123 * Ready to accept connections tcp",
            "info",
            "Ready to accept connections tcp",
        ),
        ("8:C 23 Nov 2026 01:07:22.123 # WARNING Memory", "warning", "WARNING Memory"),
        ("123:S 23 Nov 2026 01:07:22.123 - Accepted", "debug", "Accepted"),
        ("123:M 23 Nov 2026 01:07:22.123 . 0 clients", "debug", "0 clients"),
        (
            "=== VALKEY BUG REPORT START: Cut & paste ===",
            "warning",
            "=== VALKEY BUG REPORT START: Cut & paste ===",
        ),
        ("8:M * short", "warning", "8:M * short"),
        ("", "warning", ""),
    ],
)
def test_log_lines_are_parsed(line: str, level: str, text: str) -> None:
    """Level and text are found; any other line is a warning."""
    assert parse_log_line(line) == (level, text)


def test_the_end_of_a_process_is_described() -> None:
    """The text names the status or the signal."""
    assert describe_end(3) == "exit status 3"
    assert describe_end(-9) == "SIGKILL"
    assert describe_end(-200) == "signal 200"


async def run(code: str, *, patience: float = 60.0) -> tuple[list[str], bool]:
    lines: list[str] = []
    server = await start_server([sys.executable, "-u", "-c", code], lines.append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run_output)
        with trio.move_on_after(60):
            while "ready" not in lines and server.running:  # noqa: ASYNC110 - there is no event to wait for
                await trio.sleep(0.01)
        gentle = await server.stop(patience)
        assert not server.running
        await server.stop(patience)
    return lines, gentle


@pytest.mark.slow
async def test_a_stop_has_two_steps() -> None:
    """SIGTERM first; a server that ignores it is killed after its time."""
    ignoring = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready'); time.sleep(60)"

    assert (await run("import time; print('ready'); time.sleep(60)"))[1]
    assert not (await run(ignoring, patience=0.1))[1]


@pytest.mark.slow
async def test_output_is_drained() -> None:
    """Megabytes of output, long lines and bad bytes block neither side; stderr is included."""
    code = (
        "import sys, os\n"
        "os.write(1, b'x' * 3_000_000 + b'\\n')\n"
        "os.write(2, b'\\xff err\\n' * 20_000)\n"
        "os.write(1, b'ready\\nlast')\n"
    )

    lines, _ = await run(code)

    assert lines[-2:] == ["ready", "last"]
    assert lines.count("\ufffd err") == 20_000
    assert max(map(len, lines)) <= 4096
