"""Read answers of sentinels and of cluster nodes: the primary, and others to ask.

A guide is a sentinel or a node of the cluster. Rules of this file:

1. It does no I/O: answers come in, and addresses go out.
2. The answer with the highest epoch counts. A failover raises the epoch; a guide that is cut off from the
   others together with the old primary goes on naming it, with the old epoch.
3. Guides that other guides name are asked from then on, too, at most ``MAX_GUIDES`` in all. The listed
   ones are never forgotten.
4. In a cluster the primary is the owner of the slot of ``{tangram}``. All keys of the server are in this
   slot, and a message that one node publishes reaches the subscribers of all nodes.
5. A guide that refuses a further question for lack of rights is an answer as well: only the address matters.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterable, Sequence
from typing import Final

import attrs
import hiredis

from tangram.errors import BrokerUnavailable
from tangram.redis_url import Endpoint, RedisAddress

__all__ = ["GuideAnswer", "Guides", "is_moved", "newest", "questions", "read", "require_primary"]

MAX_GUIDES: Final = 32
"""Guides that are asked at once. Deployments have 3 to 7 sentinels."""

SLOT: Final = binascii.crc_hqx(b"tangram", 0) % 16384
"""The slot of all keys with ``{tangram}``."""

MOVED: Final = frozenset({"ASK", "MOVED", "READONLY"})
"""The first words of errors with which a Redis says that another one is the primary."""


@attrs.frozen
class GuideAnswer:
    """The answer of one guide."""

    primary: Endpoint
    epoch: int
    """Number of the last failover that the guide knows."""
    guides: tuple[Endpoint, ...] = ()
    """The other guides that it knows."""


class Guides:
    """The guides that are asked: the listed ones, and those that they named."""

    def __init__(self, listed: Iterable[Endpoint]) -> None:
        self._listed = tuple(listed)
        self._learned: tuple[Endpoint, ...] = ()

    def all(self) -> Sequence[Endpoint]:
        """Return the guides to ask, the listed ones first."""
        return (*self._listed, *self._learned)[: max(MAX_GUIDES, len(self._listed))]

    def learn(self, found: GuideAnswer) -> None:
        """Remember the guides of the answer that counted; forget those that it no longer names."""
        if found.guides:
            self._learned = tuple(one for one in dict.fromkeys(found.guides) if one not in self._listed)


def newest(found: Sequence[GuideAnswer]) -> GuideAnswer:
    """Return the answer that counts; among equal epochs the first one."""
    return max(found, key=lambda one: one.epoch)


def questions(address: RedisAddress) -> Sequence[tuple[str, ...]]:
    """Return the commands that ask a guide of an address."""
    if address.kind == "sentinel":
        name = address.master
        return (
            ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", name),
            ("SENTINEL", "MASTER", name),
            ("SENTINEL", "SENTINELS", name),
        )
    return (("CLUSTER", "NODES"),)


def read(address: RedisAddress, asked: Endpoint, answers: Sequence[object]) -> GuideAnswer:
    """Return what a guide's answers to ``questions`` say.

    Raises:
        BrokerUnavailable: the guide does not know the primary, or refuses the question.
    """
    first = answers[0]
    if isinstance(first, hiredis.ReplyError):
        raise BrokerUnavailable(str(first))
    if address.kind == "sentinel":
        return _read_sentinel(address.master, answers)
    return _read_cluster(asked, first, names=address.tls)


def is_moved(answer: object) -> bool:
    """Return whether an answer says that another Redis is the primary."""
    return isinstance(answer, hiredis.ReplyError) and str(answer).partition(" ")[0] in MOVED


def require_primary(role: object) -> None:
    """Check the answer to ROLE of the Redis that was named as the primary.

    Raises:
        BrokerUnavailable: it is a replica.
    """
    if isinstance(role, list) and role and role[0] != b"master":
        raise BrokerUnavailable(f"the redis that was named as the primary is a {_text(role[0])!r}")


def _text(value: object) -> str:
    return bytes(value).decode(errors="replace") if isinstance(value, bytes) else str(value)


# --- Sentinel


def _read_sentinel(name: str, answers: Sequence[object]) -> GuideAnswer:
    place = _endpoint(answers[0]) if isinstance(answers[0], list) and len(answers[0]) == 2 else None
    if place is None:
        raise BrokerUnavailable(f"it knows no master {name!r}; expected a name of its 'sentinel monitor'")
    fields = _fields(answers[1]) if len(answers) > 1 else {}
    others = answers[2] if len(answers) > 2 and isinstance(answers[2], list) else []
    guides = [_endpoint((one.get("ip"), one.get("port"))) for one in map(_fields, others)]
    return GuideAnswer(place, _number(fields.get("config-epoch")), tuple(one for one in guides if one))


def _fields(answer: object) -> dict[str, str]:
    """Return the fields of one instance, which RESP2 sends as names and values in turn."""
    if not isinstance(answer, list):
        return {}
    words = [_text(word) for word in answer]
    return dict(zip(words[::2], words[1::2], strict=False))


def _endpoint(pair: Sequence[object]) -> Endpoint | None:
    host, port = _text(pair[0]), _number(_text(pair[1]))
    return (host, port) if host and 0 < port < 65536 else None


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) <= 18 else 0


# --- Redis Cluster


def _read_cluster(asked: Endpoint, answer: object, *, names: bool) -> GuideAnswer:
    owner: tuple[Endpoint, int] | None = None
    guides: list[Endpoint] = []
    for line in _text(answer).splitlines():
        words = line.split(" ")
        place = _node(words[1], asked, names=names) if len(words) >= 8 else None
        if place is None:
            continue
        flags = words[2].split(",")
        if "noaddr" not in flags and "handshake" not in flags:
            guides.append(place)
        if "master" in flags and any(map(_holds_slot, words[8:])):
            owner = place, _number(words[6])
    if owner is None:
        raise BrokerUnavailable(f"no node of the cluster has slot {SLOT}, which holds tangram's keys")
    return GuideAnswer(owner[0], owner[1], tuple(guides))


def _node(word: str, asked: Endpoint, *, names: bool) -> Endpoint | None:
    """Return the address of a node from ``ip:port@bus-port[,host name[,...]]``."""
    first, *more = word.split(",")
    host, _, port = first.partition("@")[0].rpartition(":")
    if names and more and more[0]:
        host = more[0]  # the certificate is for the name
    return _endpoint((host or asked[0], port))


def _holds_slot(words: str) -> bool:
    if words.startswith("["):
        return False  # a slot that moves at this moment; its owner has a range, too
    first, _, last = words.partition("-")
    return _number(first) <= SLOT <= _number(last or first)
