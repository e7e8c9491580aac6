"""The proof that a request on the internal listener comes from a node of this cluster.

1. No I/O here: nonces are arguments, and there is no clock. Nodes whose clocks differ understand each other.
2. Both nodes know ``jwt_secret``. A key with a purpose of its own is derived from it, so that no token of a
   browser is a proof here and no proof is a token.
3. A node opens a session at another node: it proves that it has the key, and so does the other one in its
   answer. A program that listens at the address of a node without the key receives no request.
4. Each request carries a number and a MAC over number, method, target and all header fields, under the key of
   its session. A number is accepted once. A recorded request is therefore refused, and a request whose fate
   is unknown can be sent again: the receiver knows whether it has taken it.
5. Sessions that no request has used yet are kept apart: recorded greetings push out only each other.
"""

from __future__ import annotations

import hmac
from collections import OrderedDict
from enum import Enum
from typing import Final

import attrs

__all__ = ["NONCE_BYTES", "Keyring", "NodeSession", "SessionTable", "Verdict"]

LABEL: Final = b"tangram internal listener, version 1"

NONCE_BYTES: Final = 16
"""Bytes of a nonce and of a session's name."""

WINDOW: Final = 4096
"""Numbers below the highest one that are still accepted: more requests than are ever on their way at once."""

MAX_SESSIONS: Final = 1024
"""Sessions that requests have used; each restart of a node leaves one behind."""

MAX_FRESH: Final = 64
"""Sessions that no request has used yet."""

_MASK: Final = (1 << WINDOW) - 1


class Verdict(Enum):
    """The result of a check of one request."""

    ACCEPTED = "its proof is right"
    SEEN = "it was accepted before"
    """The request was accepted before, or its number is too old."""
    UNKNOWN = "its session is unknown"
    """The session is not known, for example after a restart of the receiver."""
    FORGED = "its proof is wrong"
    """There is no proof, or a wrong one."""


class Keyring:
    """The key that the nodes of a cluster share.

    Args:
        secret: ``[channel] jwt_secret`` of every node.
    """

    def __init__(self, secret: str) -> None:
        self._key = _mac(secret.encode(), LABEL)

    def greet(self, sender: str, receiver: str, nonce: bytes) -> bytes:
        """Return the proof of a greeting, in hexadecimal digits."""
        return self._prove(b"hello", sender, receiver, nonce)

    def answer(self, sender: str, receiver: str, nonce: bytes, session: bytes) -> bytes:
        """Return the proof of the answer to a greeting, in hexadecimal digits."""
        return self._prove(b"welcome", sender, receiver, nonce + session)

    def session_key(self, nonce: bytes, session: bytes) -> bytes:
        """Return the key of a session from the nonces of both sides."""
        return _mac(self._key, b"session\n" + nonce + session)

    def _prove(self, purpose: bytes, sender: str, receiver: str, rest: bytes) -> bytes:
        # Ids hold no line break, see `[cluster] node`; the lengths in front make the text unambiguous anyway.
        names = b"%d %d\n%b\n%b\n" % (len(sender), len(receiver), sender.encode(), receiver.encode())
        return _mac(self._key, purpose + b"\n" + names + rest).hex().encode()


@attrs.define(eq=False)
class NodeSession:
    """A session on the side that sends requests."""

    name: bytes
    """In hexadecimal digits, as the receiver has made it."""
    key: bytes = attrs.field(repr=False)
    _last: int = 0

    def next_number(self) -> int:
        """Return a number that no request of this session has had."""
        self._last += 1
        return self._last

    def seal(self, number: int, signed: bytes) -> bytes:
        """Return the proof of a request: the session, the number and the MAC."""
        return b"%b %d %b" % (self.name, number, _seal(self.key, number, signed))


@attrs.define(eq=False)
class _Accepting:
    """A session on the side that receives requests."""

    sender: str
    key: bytes = attrs.field(repr=False)
    highest: int = 0
    seen: int = 0
    """One bit for each number from the highest one down."""

    def take(self, number: int) -> bool:
        """Return whether a number is new, and note it."""
        ahead = number - self.highest
        if ahead > 0:
            self.seen = ((self.seen << ahead) | 1) & _MASK if ahead < WINDOW else 1
            self.highest = number
            return True
        bit = 1 << -ahead
        if -ahead >= WINDOW or self.seen & bit:
            return False
        self.seen |= bit
        return True


class SessionTable:
    """The sessions that other nodes have opened here.

    Args:
        keyring: the shared key.
        me: the id of this node.
    """

    def __init__(self, keyring: Keyring, me: str) -> None:
        self._keyring = keyring
        self._me = me
        self._fresh: OrderedDict[bytes, _Accepting] = OrderedDict()
        self._used: OrderedDict[bytes, _Accepting] = OrderedDict()

    def open(self, greeting: bytes, name: bytes) -> bytes | None:
        """Open a session for a greeting, and return the answer; None if the greeting is no proof.

        Args:
            greeting: the value of the header: sender, nonce and proof.
            name: random bytes, the name of the session.
        """
        parts = greeting.split(b" ")
        if len(parts) != 3:
            return None
        sender = parts[0].decode("latin-1")
        nonce = _unhex(parts[1])
        if nonce is None or not hmac.compare_digest(parts[2], self._keyring.greet(sender, self._me, nonce)):
            return None
        shown = name.hex().encode()
        self._fresh[shown] = _Accepting(sender, self._keyring.session_key(nonce, name))
        if len(self._fresh) > MAX_FRESH:
            self._fresh.popitem(last=False)
        return b"%b %b" % (shown, self._keyring.answer(sender, self._me, nonce, name))

    def check(self, proof: bytes, signed: bytes) -> Verdict:
        """Check the proof of one request, and accept its number.

        Args:
            proof: the value of the header, as `NodeSession.seal` has made it.
            signed: method, target and fields, as ``heads.signed_text`` joins them.
        """
        parts = proof.split(b" ")
        if len(parts) != 3 or not parts[1].isdigit() or len(parts[1]) > 18:
            return Verdict.FORGED
        session = self._used.get(parts[0])
        if session is None:
            session = self._fresh.get(parts[0])
            if session is None:
                return Verdict.UNKNOWN
        number = int(parts[1])
        if not hmac.compare_digest(parts[2], _seal(session.key, number, signed)):
            return Verdict.FORGED
        self._note_use(parts[0], session)
        return Verdict.ACCEPTED if session.take(number) else Verdict.SEEN

    def _note_use(self, name: bytes, session: _Accepting) -> None:
        if self._fresh.pop(name, None) is not None:
            self._used[name] = session
            if len(self._used) > MAX_SESSIONS:
                self._used.popitem(last=False)
        else:
            self._used.move_to_end(name)


def _seal(key: bytes, number: int, signed: bytes) -> bytes:
    return _mac(key, b"request %d\n%b" % (number, signed)).hex().encode()


def _mac(key: bytes, text: bytes) -> bytes:
    return hmac.digest(key, text, "sha256")


def _unhex(text: bytes) -> bytes | None:
    try:
        value = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        return None
    return value if len(value) == NONCE_BYTES else None
