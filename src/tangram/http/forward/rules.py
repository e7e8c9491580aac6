"""The decisions about requests for plugins that run on one node.

1. No I/O here, no clock: facts in, a step out. ``forwarder`` and ``exchange`` carry the steps out.
2. A node that runs the plugin serves the request, whatever the placement says. No request is forwarded twice:
   a forwarded request for a plugin that has moved goes back to the node that took it from the client.
3. A request is sent again only if the application cannot see it twice. That is so
   - if no byte of it was sent,
   - if the receiver has refused it before its application saw it,
   - if the same receiver takes the same number: it would refuse a number that it has taken before,
   - or if the method is idempotent (RFC 9110, section 9.2.2), and then once.
   And a request is sent again only while the bytes of its body are still at hand.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final, Literal

import attrs

__all__ = ["IDEMPOTENT", "Facts", "Retry", "SendFailure", "Step", "next_step", "retry_after"]

IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"})


class Step(Enum):
    """The next step for a request of a placed plugin."""

    SERVE = auto()
    """The plugin runs here."""
    FORWARD = auto()
    """Send it to the holder."""
    REFUSE = auto()
    """Report to the node that has forwarded it that the plugin is elsewhere."""
    WAIT = auto()
    """Wait for a holder."""
    GIVE_UP = auto()
    """Answer 503."""


@attrs.frozen
class Facts:
    """The facts about a plugin at one moment."""

    running: bool
    """It runs here, and is not being moved away."""
    holder: Literal["here", "elsewhere", "none"]
    reachable: bool
    """The holder has an internal listener, and the last attempt to reach it did not fail."""
    forwarded: bool
    """Another node has sent the request here."""
    in_time: bool
    """The time for waiting is not over."""


def next_step(facts: Facts) -> Step:
    """Return the next step for a request."""
    if facts.running:
        return Step.SERVE
    if facts.holder == "elsewhere":
        if facts.forwarded:
            return Step.REFUSE
        if facts.reachable:
            return Step.FORWARD
    return Step.WAIT if facts.in_time else Step.GIVE_UP


class SendFailure(Enum):
    """The ways in which the sending of a request fails without an answer for the client."""

    NOT_SENT = auto()
    """There is no connection to the node."""
    UNANSWERED = auto()
    """The connection ended before the first byte of an answer."""
    SEEN = auto()
    """The receiver had taken this number before."""
    FORGOTTEN = auto()
    """The receiver does not know the session."""
    MOVED = auto()
    """The receiver does not hold the plugin."""


class Retry(Enum):
    """The answer to a failure."""

    SAME = auto()
    """Send it to the same node with the same number, on another connection."""
    ANEW = auto()
    """Look for the holder again, and send it with another number."""
    NEVER = auto()
    """The application may have seen it: answer 502."""


def retry_after(
    failure: SendFailure, *, unanswered: int, at_hand: bool, idempotent: bool, repeated: bool
) -> Retry:
    """Return whether a request is sent again.

    Args:
        failure: the last failure.
        unanswered: attempts with the present number that ended without an answer, this one included.
        at_hand: no byte of the body was passed on that cannot be passed on again.
        idempotent: the method may be repeated.
        repeated: an idempotent request was repeated already.
    """
    if not at_hand:
        return Retry.NEVER
    if failure is SendFailure.MOVED:
        return Retry.ANEW
    certain = unanswered == 0
    if failure in {SendFailure.NOT_SENT, SendFailure.FORGOTTEN} and certain:
        return Retry.ANEW
    if failure is SendFailure.UNANSWERED and unanswered == 1:
        return Retry.SAME
    return Retry.ANEW if idempotent and not repeated else Retry.NEVER
