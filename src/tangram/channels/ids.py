"""External ids that only the client that got them can use again.

An id is public: presence shows it to all members of a topic. Without a proof any client could ask for a token
of another client's id, and so join its private stream ``streaming-<id>``.

1. A *bound* id can be recognised without a memory: its last two characters are a check of the others, made
   with the server's secret. So it stays bound after a restart, and on other nodes with the same secret.
2. The proof of an id is a MAC of it. It comes with the first token, in the answer and as a cookie, and is
   expected with each later request for that id.
3. Ids that a client chose itself are remembered (``proven`` only), in a bounded memory.
4. Modes: ``open`` binds nothing. ``proven`` binds every id. ``auto`` binds the ids of clients that are known
   to keep the proof: pages of the server's own origin, whose browser keeps the cookie, and programs that ask.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from collections import OrderedDict
from collections.abc import Callable, Collection
from hashlib import sha256
from typing import Final, Literal

__all__ = ["IdMode", "IdProofs"]

IdMode = Literal["auto", "proven", "open"]

MAX_CHOSEN: Final = 100_000
"""Ids chosen by clients that are remembered; the one used longest ago is forgotten first."""
CHECK: Final = 2
"""Characters of an id that mark it as bound: one of 3,844 other ids looks as if it were."""
_ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


class IdProofs:
    """The bound ids of one server."""

    def __init__(self, secret: str, mode: IdMode, new_id: Callable[[], str]) -> None:
        """Make the proofs.

        Args:
            secret: the key of tokens; proofs are made with a key derived from it.
            mode: which ids are bound, see above.
            new_id: returns random letters and digits.
        """
        self._key = hmac.digest(secret.encode(), b"tangram external ids", sha256)
        self._mode = mode
        self._new_id = new_id
        self._chosen: OrderedDict[str, None] = OrderedDict()

    def make(self, *, keeps_proof: bool) -> str:
        """Return a new id, bound if the client keeps its proof or the mode is ``proven``."""
        bound = self._mode == "proven" or (self._mode == "auto" and keeps_proof)
        while True:
            id_ = self._new_id()
            if bound and len(id_) > CHECK:
                body = id_[:-CHECK]
                return body + self._check(body)
            if not self._looks_bound(id_):
                return id_

    def may_use(self, id_: str, proofs: Collection[str]) -> bool:
        """Return whether a client with these proofs may have a token of an id that it names."""
        if self._mode == "open":
            return True
        if not self._looks_bound(id_) and (self._mode == "auto" or id_ not in self._chosen):
            return True
        expected = self.proof(id_)
        return any(hmac.compare_digest(expected.encode(), proof.encode()) for proof in proofs)

    def note(self, id_: str) -> None:
        """Remember an id that a client chose, once a token of it was minted."""
        if self._mode == "proven" and not self._looks_bound(id_):
            self._chosen.pop(id_, None)
            self._chosen[id_] = None
            if len(self._chosen) > MAX_CHOSEN:
                self._chosen.popitem(last=False)

    def proof(self, id_: str) -> str:
        """Return the proof of an id: 22 characters for base64url."""
        mac = hmac.digest(self._key, b"proof\0" + id_.encode(errors="surrogatepass"), sha256)
        return urlsafe_b64encode(mac[:16]).decode().rstrip("=")

    def _looks_bound(self, id_: str) -> bool:
        return len(id_) > CHECK and id_[-CHECK:] == self._check(id_[:-CHECK])

    def _check(self, body: str) -> str:
        mac = hmac.digest(self._key, b"check\0" + body.encode(errors="surrogatepass"), sha256)
        return "".join(_ALPHABET[byte % len(_ALPHABET)] for byte in mac[:CHECK])
