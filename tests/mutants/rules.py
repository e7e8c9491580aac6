"""The rules of supervision about order, first boot and restarts, R1 to R4, each taken away."""

from __future__ import annotations

from tests.mutants.workshop import Mutant

__all__ = ["RULES"]

DECIDE = "supervision/decide.py"
RUNNER = "supervision/runner.py"
SPEC = "supervision/spec.py"
TABLE = "supervision/table.py"

BEYOND = "tests/supervision/test_beyond.py::"
START_STOP = "tests/supervision/test_twins_start_stop.py::"
STRATEGIES = "tests/supervision/test_twins_strategies.py::"
LIVES = "tests/mutants/test_lives.py::"

ORDER = (
    Mutant(
        "R1",
        "start-order",
        "children are started from the last to the first",
        DECIDE,
        "candidates = [waiting[rank] for rank in sorted(waiting)]",
        "candidates = [waiting[rank] for rank in sorted(waiting, reverse=True)]",
        (f"{START_STOP}test_sup_start_normal",),
    ),
    Mutant(
        "R1",
        "start-one-after-another",
        "a start does not wait for the one before it",
        DECIDE,
        "return self._in_order and any(self._by[state] for state in UNSETTLED)",
        "return False",
        (f"{STRATEGIES}test_one_for_all",),
    ),
    Mutant(
        "R1",
        "start-limit",
        "a start may take for ever",
        DECIDE,
        "entry.due = now + entry.spec.start_timeout",
        "entry.due = math.inf",
        (f"{BEYOND}test_start_limit", f"{BEYOND}test_start_limit_in_a_restart"),
    ),
    Mutant(
        "R1",
        "stop-order",
        "children are stopped from the first to the last",
        DECIDE,
        "entry = leaving[max(leaving)]",
        "entry = leaving[min(leaving)]",
        (f"{LIVES}test_an_idle_life",),
        because="stops_in_reverse_order",
    ),
    Mutant(
        "R1",
        "stop-one-after-another",
        "all children are stopped at once",
        DECIDE,
        "entry.blocks = limit > 0",
        "entry.blocks = False",
        (f"{LIVES}test_a_slow_plugin_is_waited_for",),
        because="stops_in_reverse_order",
    ),
    Mutant(
        "R1",
        "stop-time",
        "a child may take for its stop what it likes",
        DECIDE,
        "entry.due = now + (limit or entry.spec.stop_timeout)",
        "entry.due = math.inf",
        (f"{START_STOP}test_sup_stop_timeout",),
    ),
    Mutant(
        "R1",
        "stop-total",
        "each child has its whole stop time, whatever is left of the total",
        DECIDE,
        "limit = min(limit, max(0.0, self._total_due - now))",
        "pass",
        (f"{START_STOP}test_sup_stop_timeout_dynamic",),
    ),
    Mutant(
        "R1",
        "stop-total-of-the-one-above",
        "a supervisor below another takes a total of its own for its stop",
        RUNNER,
        "due = math.inf if self.parent is None else self.parent.stop_due",
        "due = math.inf",
        (f"{BEYOND}test_nested_stop_keeps_the_outer_limit",),
    ),
    Mutant(
        "R1",
        "stop-scope-by-scope",
        "what cancels a supervisor reaches its children at once and at random",
        "supervision/lives.py",
        "lambda: trio.CancelScope(shield=True)",
        "lambda: trio.CancelScope()",
        (f"{BEYOND}test_outer_cancel_stops_in_order",),
    ),
)

FIRST_BOOT = (
    Mutant(
        "R2",
        "no-retry",
        "a core part that cannot start at first boot is tried again",
        DECIDE,
        """        elif entry.ever_up:
            self._restart(entry, crash, now)
        else:
            self._boot_failed(entry, crash, now)""",
        """        else:
            self._restart(entry, crash, now)""",
        ("tests/testing/test_server.py::test_a_server_that_does_not_come_up_is_told_with_its_status",),
    ),
    Mutant(
        "R2",
        "started-ones-are-stopped",
        "those that were started already are left running when a part cannot start",
        DECIDE,
        "        self._close(now, math.inf)\n\n    def _close",
        "\n    def _close",
        (f"{START_STOP}test_sup_start_fail",),
    ),
    Mutant(
        "R2",
        "plugin-is-quarantined",
        "a plugin that cannot start keeps the server from coming up",
        DECIDE,
        'if entry.spec.start_failure == "quarantine":',
        "if False:",
        (f"{LIVES}test_a_plugin_that_cannot_start_is_left_out",),
        raises=("TangramEnded",),
    ),
    Mutant(
        "R2",
        "strict",
        "`strict` does not keep a server with a broken plugin from coming up",
        "app/tree.py",
        'start_failure="fail" if self.config.core.strict and not self.booted else "quarantine"',
        'start_failure="quarantine"',
        (f"{LIVES}test_strict_ends_a_server_whose_plugin_cannot_start",),
    ),
    Mutant(
        "R2",
        "redis-is-waited-for",
        "a plugin that fails because Redis is away has crashed",
        "app/patience.py",
        "return not self._is_there() or trio.current_time() - self._back_at < RECENT",
        "return False",
        (f"{LIVES}test_an_outage_crashes_nobody",),
    ),
)

RESTARTS = (
    Mutant(
        "R3",
        "a-failed-restart-counts",
        "a restart that fails to start is not charged",
        DECIDE,
        "        elif entry.ever_up:\n            self._restart(entry, crash, now)",
        "        elif entry.ever_up:\n            self._send_away(entry, State.WAITING, now)",
        (f"{STRATEGIES}test_one_for_all_other_child_fails_restart",),
    ),
    Mutant(
        "R3",
        "a-stop-is-obeyed-at-once",
        "a stop waits until whoever is in back-off has been started",
        DECIDE,
        "        for entry in list(self.entries.values()):\n            if entry.state not in AT_REST:\n",
        "        for entry in list(self.entries.values()):\n"
        "            if entry.state not in (*AT_REST, State.WAITING):\n",
        (f"{BEYOND}test_stop_during_backoff",),
    ),
    Mutant(
        "R4",
        "the-first-is-at-once",
        "the first restart waits like the second",
        SPEC,
        "if attempt == 0 or self.initial == 0:",
        "if self.initial == 0:",
        (f"{BEYOND}test_backoff_grows_resets_and_hurries",),
    ),
    Mutant(
        "R4",
        "doubling",
        "the back-off does not grow",
        SPEC,
        "grown = self.initial * self.factor ** min(attempt - 1, 64)",
        "grown = self.initial",
        (f"{BEYOND}test_backoff_grows_resets_and_hurries",),
    ),
    Mutant(
        "R4",
        "a-longest-wait",
        "the back-off grows without limit",
        SPEC,
        "return min(self.maximum, grown) *",
        "return grown *",
        (f"{BEYOND}test_backoff_grows_resets_and_hurries",),
    ),
    Mutant(
        "R4",
        "jitter",
        "many come back in step",
        SPEC,
        "(1 + self.jitter * (2 * chance - 1))",
        "1",
        (f"{BEYOND}test_backoff_grows_resets_and_hurries",),
    ),
    Mutant(
        "R4",
        "reset",
        "a crash after a quiet hour waits as the last of many",
        TABLE,
        "if self.last is not None and now - self.last >= backoff.reset:",
        "if False:",
        (f"{BEYOND}test_backoff_grows_resets_and_hurries",),
    ),
    Mutant(
        "R4",
        "cut-short",
        "who waits goes on waiting although what was missing is back",
        DECIDE,
        "            entry.gate = min(entry.gate, now)\n        return",
        "            pass\n        return",
        (f"{BEYOND}test_backoff_grows_resets_and_hurries",),
    ),
    Mutant(
        "R4",
        "cut-short-by-redis",
        "nobody is told that the Redis that was missing is back",
        "app/tree.py",
        "            self.incarnation.hurry()",
        "            pass",
        (f"{LIVES}test_who_waits_is_hurried_when_redis_is_back",),
    ),
)

WHO_GOES = (
    Mutant(
        "R1",
        "one_for_all",
        "`one_for_all` leaves the others running",
        TABLE,
        '"one_for_all": lambda _crashed, _other: True,',
        '"one_for_all": lambda crashed, other: other == crashed,',
        (f"{STRATEGIES}test_one_for_all",),
    ),
    Mutant(
        "R1",
        "rest_for_one",
        "`rest_for_one` takes everybody along",
        TABLE,
        '"rest_for_one": lambda crashed, other: other >= crashed,',
        '"rest_for_one": lambda _crashed, _other: True,',
        (f"{LIVES}test_a_life_with_crashes",),
        because="healthy_siblings_untouched",
    ),
    Mutant(
        "R1",
        "one_for_one",
        "`one_for_one` takes everybody along",
        TABLE,
        '"one_for_one": lambda crashed, other: other == crashed,',
        '"one_for_one": lambda _crashed, _other: True,',
        (f"{LIVES}test_a_life_with_crashes",),
        because="healthy_siblings_untouched",
    ),
    Mutant(
        "R6",
        "temporary",
        "a temporary child is started again when a sibling's crash took it down",
        DECIDE,
        'again = entry.spec.restart != "temporary" or entry.asked is not None',
        "again = True",
        (f"{STRATEGIES}test_temporary_bystander",),
    ),
)

RULES = (*ORDER, *FIRST_BOOT, *RESTARTS, *WHO_GOES)
