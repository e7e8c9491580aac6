"""Mutants of presence over all nodes."""

from __future__ import annotations

from tests.mutants.workshop import Mutant

__all__ = ["NODES"]

ROLL = "presence/roll.py"
SESSIONS = "presence/sessions.py"
SERVERS = "tests/presence/test_servers.py::"
FRAMES = "tests/presence/test_frames.py::"

NODES = (
    Mutant(
        "presence",
        "flush-with-marker",
        "a node that loads members asks for no marker, and never knows which differences they contain",
        ROLL,
        "            nonce = self._ask(entry)",
        "            self._ask(entry)",
        (f"{FRAMES}test_lists_of_all_nodes_have_the_same_bytes",),
    ),
    Mutant(
        "presence",
        "members-of-a-dead-node-leave",
        "the members of a node that has died stay",
        SESSIONS,
        "                found.append(Sweep(session, node, gone=True))",
        "                pass",
        (f"{SERVERS}test_members_of_a_node_that_dies_leave_within_8_s",),
    ),
    Mutant(
        "presence",
        "no-flicker",
        "an id that joins again on another node is missing for a moment",
        SESSIONS,
        "self._due.setdefault(session, now + self._grace)",
        "self._due.setdefault(session, now)",
        (f"{SERVERS}test_members_of_a_node_that_stops_may_join_again_without_a_flicker",),
    ),
    Mutant(
        "presence",
        "no-list-above-the-limit",
        "the functions on Redis, here their twin, publish differences above the limit",
        "testing/fakes/valkey/presence_functions.py",
        "        listed = not self.over and not self.counting",
        "        listed = True",
        (f"{SERVERS}test_a_topic_above_its_limit_sends_numbers",),
    ),
    Mutant(
        "presence",
        "no-list-above-the-limit-of-one-node",
        "a node alone goes on to publish differences above the limit",
        "channels/presence.py",
        "            if entry.counting:\n                entry.changes.clear()\n            joins",
        "            joins",
        (f"{FRAMES}test_a_member_that_comes_and_goes_at_the_limit_causes_no_lists",),
    ),
    Mutant(
        "presence",
        "beats-often-enough",
        "a node notices only after more than eight seconds that another one has died",
        "cluster/nodes.py",
        "min(RENEW_EVERY, lease_ttl / 3)",
        "2.5",
        (f"{SERVERS}test_members_of_a_node_that_dies_leave_within_8_s",),
    ),
)
