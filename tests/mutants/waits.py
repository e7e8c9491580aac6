"""Mutants of waits for sockets: reads while Trio is idle, and writes at the end of a pass."""

from __future__ import annotations

from tests.mutants.workshop import Mutant

__all__ = ["WAITS"]

IDLE = "idle.py"
IDLES = "tests/test_idle.py::"
SERVED = "tests/bus/test_served.py::"

WAITS = (
    Mutant(
        "waits",
        "idle-reader-returns-to-woken-tasks",
        "a task that a read has woken waits for the next deadline of another one",
        IDLE,
        "            if not ready or self._take(ready) or self._woken:\n",
        "            if not ready or self._take(ready):\n",
        (f"{IDLES}test_a_task_that_a_step_wakes_runs_before_further_waits",),
    ),
    Mutant(
        "waits",
        "idle-reader-returns-to-trios-sockets",
        "requests wait while messages come",
        IDLE,
        "        self._epoll.register(self._trios, select.EPOLLIN)\n",
        "",
        (f"{IDLES}test_a_socket_of_trio_ends_the_wait",),
    ),
    Mutant(
        "waits",
        "idle-reader-looks-beside-busy-tasks",
        "messages wait while tasks of plugins are busy",
        IDLE,
        "            self._call(self._look, 0.0)\n",
        "            pass\n",
        (f"{IDLES}test_busy_tasks_keep_no_socket_waiting",),
    ),
    Mutant(
        "waits",
        "idle-reader-looks-at-the-time",
        "a client that sends without a pause stops every timer",
        IDLE,
        "            if left <= 0.0:\n",
        "            if False:\n",
        (f"{IDLES}test_sockets_that_are_always_ready_keep_no_task_waiting",),
    ),
    Mutant(
        "waits",
        "rest-of-a-write-is-kept",
        "the end of a large write to Redis is lost",
        "bus/publisher.py",
        "or self._unsent or self._large is not None:\n            self._rest = data[sent:]\n",
        "or self._unsent or self._large is not None:\n",
        (f"{SERVED}test_the_rest_of_a_write_goes_out_before_later_messages",),
        raises=("ProtocolError",),
    ),
)
