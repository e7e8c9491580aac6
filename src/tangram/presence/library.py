"""The functions of presence on Redis, for the caller: calls and answers as values.

No I/O: the text of the functions is in ``functions.lua``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from tangram.bus.library import Library
from tangram.bus.scripts import FunctionCall
from tangram.bus.topics import own_key
from tangram.channels.codec import encode_json
from tangram.channels.frames import PRESENCE_DIFF
from tangram.channels.presence import to_metas

__all__ = [
    "LIBRARY",
    "MAX_SWEPT",
    "TopicSnapshot",
    "claim_call",
    "end_call",
    "flush_call",
    "forget_call",
    "parse_flush",
    "parse_members",
    "parse_sessions",
    "read_call",
    "sessions_call",
    "sweep_call",
    "version_call",
]

LIBRARY: Final = Library(
    "tangram.presence",
    (
        "who_flush",
        "who_read",
        "who_version",
        "who_sweep",
        "who_sessions",
        "who_end",
        "who_claim",
        "who_forget",
    ),
)
MAX_SWEPT: Final = 2000
"""Members of one topic that are removed in one step, which keeps Redis busy for some 5 ms."""
_SESSIONS: Final = own_key("presence")


class Member(NamedTuple):
    """A member of a topic, as Redis holds it."""

    id: str
    session: str


class TopicSnapshot(NamedTuple):
    """All members of a topic at one version."""

    version: int
    counting: bool
    """Whether the topic shows a number; ``members`` is then empty."""
    size: int
    members: Mapping[str, Member] | None
    """The members by agent; None if the answer has none."""


def _who(topic: str) -> str:
    return own_key("topic", topic, "who")


def _session(session: str) -> str:
    return own_key("presence", session)


def _lock(session: str) -> str:
    return own_key("presence", session, "sweep")


def _bound(limit: int | None) -> str:
    return "" if limit is None else str(limit)


def flush_call(
    topic: str,
    session: str,
    node: str,
    *,
    joins: Mapping[str, str],
    leaves: Mapping[str, str],
    limit: int | None,
    nonce: str = "",
    whole: bool = False,
    empty: bool = False,
) -> FunctionCall:
    """Return the call that applies and publishes a change of one node.

    Args:
        topic: the topic.
        session: the session of the members that join.
        node: the node of the session.
        joins: external ids by agent.
        leaves: external ids by agent.
        limit: members above which the topic shows their number.
        nonce: names a marker; the answer then has all members.
        whole: whether ``joins`` are all members of the session, so that others of it leave.
        empty: whether the session has no member of the topic after this.
    """
    words: list[str | bytes] = [topic, session, node, nonce, _bound(limit)]
    words += ["1" if whole else "0", "1" if empty else "0", str(len(joins))]
    for agent, id_ in joins.items():
        words += (encode_json(agent), encode_json(id_))
    words += map(encode_json, leaves)
    # A Redis without functions publishes the difference, as a single node does.
    listed = {"joins": to_metas(joins), "leaves": to_metas(leaves)}
    instead = ("PUBLISH", f"to:{topic}:{PRESENCE_DIFF}", encode_json(listed))
    return FunctionCall("tangram_who_flush", (_who(topic), _SESSIONS, _session(session)), words, instead)


def parse_flush(answer: Any) -> TopicSnapshot | None:
    """Return the answer to a flush as a value; None from a Redis without the functions."""
    if not isinstance(answer, list):
        return None
    members = parse_members(answer[3]) if len(answer) > 3 else None
    return TopicSnapshot(int(answer[0]), bool(answer[1]), int(answer[2]), members)


def read_call(topic: str) -> FunctionCall:
    """Return the call that reads the members of a topic."""
    return FunctionCall("tangram_who_read", (_who(topic),), ())


def version_call(topic: str) -> FunctionCall:
    """Return the call that reads the version of a topic's members."""
    return FunctionCall("tangram_who_version", (_who(topic),), ())


def parse_members(fields: Sequence[bytes]) -> dict[str, Member]:
    """Return the members in the hash of a topic by agent."""
    found: dict[str, Member] = {}
    for agent, value in zip(fields[::2], fields[1::2], strict=True):
        if not agent.startswith(b"#"):
            session, _, id_ = value.partition(b" ")
            found[msgspec.json.decode(agent)] = Member(msgspec.json.decode(id_), session.decode())
    return found


def sweep_call(topic: str, session: str, limit: int | None) -> FunctionCall:
    """Return the call that removes members of a session; it answers 1 if some are left."""
    words = (topic, session, _bound(limit), str(MAX_SWEPT))
    return FunctionCall("tangram_who_sweep", (_who(topic), _session(session)), words)


def sessions_call() -> FunctionCall:
    """Return the call that reads all sessions."""
    return FunctionCall("tangram_who_sessions", (_SESSIONS,), ())


def parse_sessions(fields: Sequence[bytes]) -> dict[str, tuple[str, bool]]:
    """Return the node of each session, and whether the session has ended as planned."""
    found: dict[str, tuple[str, bool]] = {}
    for session, value in zip(fields[::2], fields[1::2], strict=True):
        node, _, ended = value.decode().partition(" ")
        found[session.decode()] = node, bool(ended)
    return found


def end_call(session: str, node: str) -> FunctionCall:
    """Return the call that notes the planned end of a session."""
    return FunctionCall("tangram_who_end", (_SESSIONS,), (session, node))


def claim_call(session: str, node: str, me: str, lasts: float, *, gone: bool) -> FunctionCall:
    """Return the call by which one node gets the right to sweep a session.

    It answers with the topics of the session, 1 if another node sweeps it, and 0 if it need not be swept.

    Args:
        session: the session.
        node: the node of the session.
        me: the sweeping node.
        lasts: seconds for which no other node may sweep.
        gone: whether the session ends only with its node, whose record must have expired.
    """
    keys = (_SESSIONS, _session(session), _lock(session), own_key("node", node))
    words = (session, me, str(round(lasts * 1000)), "1" if gone else "0")
    return FunctionCall("tangram_who_claim", keys, words)


def forget_call(session: str) -> FunctionCall:
    """Return the call that forgets a session that was swept."""
    return FunctionCall("tangram_who_forget", (_SESSIONS, _session(session), _lock(session)), (session,))
