"""Positions from clients, and stamps from Redis."""

from __future__ import annotations

from collections.abc import Hashable

from tangram.bus.scripts import FunctionCall
from tangram.history.feed import Delivery, Feed
from tangram.history.library import library
from tangram.history.replay import parse_replay, read_call
from tangram.history.rules import STAMPS, History, Rule, Rules
from tangram.testing.fakes.valkey.functions import call_function, load_library
from tangram.testing.fakes.valkey.server import Valkey

__all__ = ["check_position", "check_stamp"]

RULES = Rules([Rule("*", History(size=3))], new_epoch=lambda: "e1")


class _Topic:
    """A topic with six messages, of which three are kept."""

    def __init__(self) -> None:
        self._valkey = Valkey(lambda: 0.0, lambda _channel, _payload: 0)
        self._session = self._valkey.connect(lambda: None, lambda: None)
        load_library(self._valkey, self._session, [b"LOAD", b"REPLACE", library().encode()])
        for number in range(6):
            call = RULES.publishing("to:t:n", str(number))
            assert call is not None
            self.call(call)

    def call(self, call: FunctionCall) -> object:
        words = [call.function, str(len(call.keys)), *call.keys, *call.arguments]
        encoded = [word.encode() if isinstance(word, str) else word for word in words]
        return call_function(self._valkey, self._session, encoded)


TOPIC = _Topic()


def check_position(data: bytes) -> Hashable:
    """Only positions that the history gave out are recovered, with exactly the messages behind them."""
    text = data.decode(errors="replace")
    replay = parse_replay(TOPIC.call(read_call(RULES, "t", RULES.rules[0].history, text)))

    kept = {f"e1.{offset}": 6 - offset for offset in range(3, 7)}
    assert replay.recovered == (text in kept)
    assert len(replay.events) == kept.get(text, 0)
    assert (replay.reason is None) == (replay.recovered or not text)
    return replay.reason, len(replay.events)


def check_stamp(data: bytes) -> Hashable:
    """Any message on the channel of stamps is a stamp or ignored, and costs no message of a member."""
    feed = Feed(RULES, "f")
    message = (b"to:t:n", b"1")

    steps = feed.take([(STAMPS, data), message])
    messages = [one for step in steps if isinstance(step, Delivery) for one in step.batch]
    assert messages == [message]
    return len(steps), len(feed.unrecorded)
