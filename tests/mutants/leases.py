"""Mutants of the rules of leases: deadlines, releases, tokens, and a Redis that has lost its data."""

from __future__ import annotations

from tests.mutants.workshop import Mutant

__all__ = ["LEASES"]

LEASE = "cluster/lease.py"
FUNCTIONS = "cluster/functions.lua"
ONE = "tests/cluster/test_lease.py::"
DRAWN = "tests/cluster/test_lease_properties.py::"
TWIN = "tests/cluster/test_twin.py::"

LEASES = (
    Mutant(
        "lease",
        "deadline-from-the-sending",
        "an answer that was long on its way prolongs the lease on the holder's clock only",
        LEASE,
        "            self.deadline = max(self.deadline, self._deadline(sent))\n",
        "            self.deadline = max(self.deadline, self._deadline(now))\n",
        (
            f"{ONE}test_the_deadline_counts_from_the_time_of_sending",
            f"{DRAWN}test_no_two_nodes_hold_a_lease_at_once",
        ),
    ),
    Mutant(
        "lease",
        "share-for-the-clocks",
        "a holder whose clock is slow goes on behind the end of its lease",
        LEASE,
        "        return sent + (1 - DRIFT) * self.ttl - stop_limit(self.ttl)",
        "        return sent + self.ttl",
        (f"{DRAWN}test_no_two_nodes_hold_a_lease_at_once",),
    ),
    Mutant(
        "lease",
        "deadline-is-final",
        "a lease comes back while its plugin is stopping and another node may start it",
        LEASE,
        "        if value != self.value or self.expire(now):\n            return False\n",
        "        if value != self.value:\n            return False\n",
        (f"{ONE}test_an_answer_behind_the_deadline_does_not_bring_the_lease_back",),
    ),
    Mutant(
        "lease",
        "kept-until-the-end",
        "a lease is released although its plugin has still to end",
        LEASE,
        "        if self.expire(now) or (self.state is LeaseState.LOST and value == self.value):",
        "        if self.expire(now):",
        (f"{ONE}test_a_late_answer_does_not_release_a_plugin_that_has_still_to_end",),
    ),
    Mutant(
        "lease",
        "distrust",
        "a lease that Redis has lost is taken while its holder runs",
        LEASE,
        "        self._not_before = max(self._not_before, now + self.ttl)\n",
        "        pass\n",
        (f"{ONE}test_a_lease_that_redis_has_lost_is_taken_again_and_left_by_others",),
    ),
    Mutant(
        "lease",
        "tokens-grow",
        "the token of a new holder is less than that of the one before, when the clock of Redis goes back",
        FUNCTIONS,
        "math.max(tonumber(redis.call('GET', keys[2]) or '0') + 1, clock)",
        "clock",
        (f"{TWIN}test_redis_reports_times_and_tokens_that_grow",),
    ),
    Mutant(
        "lease",
        "release-of-the-own",
        "a late release of an earlier holder takes the lease from the present one",
        FUNCTIONS,
        "  if redis.call('GET', keys[1]) ~= args[2] then\n    return 0\n  end\n  redis.call('DEL', keys[1])",
        "  redis.call('DEL', keys[1])",
        (f"{TWIN}test_redis_reports_times_and_tokens_that_grow",),
    ),
)
