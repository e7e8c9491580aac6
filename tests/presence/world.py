"""A world without I/O: one Redis in memory, nodes with a roll each, and browsers that keep their view.

Every step is drawn: joins, leaves, deaths and ends of nodes, lost connections, how far each node has read its
feed, whether an answer comes before or after it, and whether it is lost. At the end everything arrives.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import attrs

from tangram.bus.scripts import FunctionCall
from tangram.channels.presence_rules import PresenceRule, PresenceRules
from tangram.presence.library import claim_call, end_call, forget_call, parse_members, read_call, sweep_call
from tangram.presence.roll import Flush, Roll
from tangram.presence.stamps import WHO
from tangram.testing.fakes.valkey.keyspace import Keyspace
from tangram.testing.fakes.valkey.presence_functions import PRESENCE_FUNCTIONS

LIMIT = 4
RULES = PresenceRules([PresenceRule("small*", "full", LIMIT), PresenceRule("number", "count")])


def words(values: Any) -> list[bytes]:
    return [one if isinstance(one, bytes) else str(one).encode() for one in values]


@attrs.define(eq=False)
class Browser:
    """A member that keeps presence as phoenix.js does."""

    topic: str
    id: str
    ref: str
    view: dict[str, set[str]] | None = None
    """External ids with their refs; None before the state."""
    number: int | None = None
    flickers: list[str] = attrs.Factory(list)
    """Ids that left this view and came back."""
    gone: set[str] = attrs.Factory(set)

    def take_state(self, payload: bytes) -> None:
        state = json.loads(payload)
        self.view = {id_: {meta["phx_ref"] for meta in one["metas"]} for id_, one in state.items()}
        self.number = None

    def take_difference(self, payload: bytes) -> None:
        if self.view is None or self.number is not None:
            return
        difference = json.loads(payload)
        for id_, one in difference["joins"].items():
            if id_ in self.gone and id_ not in self.view:
                self.flickers.append(id_)
            self.view.setdefault(id_, set()).update(meta["phx_ref"] for meta in one["metas"])
        for id_, one in difference["leaves"].items():
            refs = self.view.get(id_, set())
            refs -= {meta["phx_ref"] for meta in one["metas"]}
            if not refs and self.view.pop(id_, None) is not None:
                self.gone.add(id_)


class Node:
    """One node; ``restart`` gives it a new session."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.starts = 0
        self.alive = False
        self.start()

    def start(self) -> None:
        self.starts += 1
        self.alive = True
        self.session = f"{self.name}/{self.starts}"
        self.roll: Roll[Browser] = Roll(self.name, self.session, RULES)
        self.feed: deque[tuple[bytes, bytes]] = deque()
        self.answers: deque[tuple[Flush, Any]] = deque()
        self.browsers: dict[str, Browser] = {}

    def join(self, topic: str, id_: str) -> None:
        self.world.refs += 1
        browser = Browser(topic, id_, f"{self.name}:{topic}:{self.world.refs}")
        self.browsers[browser.ref] = browser
        self.roll.join(topic, id_, browser.ref, browser)

    def leave(self, browser: Browser) -> None:
        del self.browsers[browser.ref]
        self.roll.leave(browser.topic, browser.id, browser.ref, browser)

    def flush(self, *, lose_call: bool = False, lose_answer: bool = False) -> None:
        for flush in self.roll.flush():
            assert len(flush.joins) <= self.world.bound
            answer = None if lose_call else self.world.call(flush.call)
            self.answers.append((flush, None if lose_call or lose_answer else answer))

    def take_answers(self, count: int) -> None:
        for _ in range(min(count, len(self.answers))):
            flush, answer = self.answers.popleft()
            if answer is None:
                self.roll.failed(flush)
            else:
                self.roll.answered(flush, answer)
            self._deliver()

    def read(self, count: int) -> None:
        for _ in range(min(count, len(self.feed))):
            channel, payload = self.feed.popleft()
            if channel == WHO:
                self.roll.take_stamp(payload)
            else:
                topic = channel.decode().split(":")[1]
                if self.roll.take_difference(topic, payload):
                    self._put(topic, payload)
            self._deliver()

    def _put(self, topic: str, payload: bytes) -> None:
        newcomers = self.roll.newcomers(topic)
        for browser in self._members(topic):
            if browser not in newcomers:
                browser.take_difference(payload)

    def _members(self, topic: str) -> Iterator[Browser]:
        return (one for one in self.browsers.values() if one.topic == topic)

    def _deliver(self) -> None:
        for topic, payload in self.roll.take_corrections():
            self._put(topic, payload)

    def send_states(self, count: int) -> None:
        for topic in list(self.roll.waiting):
            number, state = self.roll.number(topic), self.roll.state(topic)
            for browser in self.roll.take_newcomers(topic, count):
                if number is None:
                    browser.take_state(state)
                else:
                    browser.number = number

    def send_numbers(self) -> None:
        for topic, number in self.roll.take_numbers():
            for browser in self._members(topic):
                browser.number = number

    def reconnect(self) -> None:
        """Lose the feed and what was in it, and subscribe again."""
        self.feed.clear()
        self.roll.announce()


class World:
    """Redis and its nodes."""

    def __init__(self, names: str = "abc") -> None:
        self.time = 1.0
        self.refs = 0
        self.bound = 2000
        """Members that one call may state."""
        self.space = Keyspace(lambda: self.time)
        self.nodes: list[Node] = []
        self.stopped: list[tuple[str, str, bool]] = []
        """Sessions that are to be swept: session, node, and whether the node must be gone."""
        self.published: list[tuple[bytes, bytes]] = []
        self.publish: Callable[[bytes, bytes], int] = self._publish
        for name in names:
            self.nodes.append(Node(self, name))

    def _publish(self, channel: bytes, payload: bytes) -> int:
        self.published.append((channel, payload))
        for node in self.nodes:
            if node.alive:
                node.feed.append((channel, payload))
        return len(self.nodes)

    def call(self, call: FunctionCall) -> Any:
        self.time += 0.001
        function = PRESENCE_FUNCTIONS[call.function.encode()]
        return function(self, words(call.keys), words(call.arguments))

    def kill(self, node: Node) -> None:
        """End a node without a word; its record expires later."""
        node.alive = False
        self.stopped.append((node.session, node.name, True))

    def end(self, node: Node) -> None:
        """End the session of a node as planned; its next one begins at once."""
        self.call(end_call(node.session, node.name))
        self.stopped.append((node.session, node.name, False))
        node.start()

    def sweep(self) -> None:
        """Remove the members of sessions that have ended."""
        for session, node, gone in self.stopped:
            topics = self.call(claim_call(session, node, "x", 5.0, gone=gone))
            for topic in topics if isinstance(topics, list) else ():
                while self.call(sweep_call(topic.decode(), session, RULES.limit(topic.decode()))):
                    pass
            self.call(forget_call(session))
        self.stopped.clear()

    def lose_data(self) -> None:
        """Restart Redis without its data: all connections break."""
        self.space.clear()
        for node in self.nodes:
            node.reconnect()

    def settle(self) -> None:
        """Let everything arrive that is on its way."""
        self.sweep()
        for _ in range(12 if self.bound > 100 else 150):
            for node in self.nodes:
                if node.alive:
                    node.flush()
                    node.read(10_000)
                    node.take_answers(10_000)
                    node.read(10_000)
                    node.roll.tick()
                    node.send_states(10_000)
                    node.send_numbers()

    def members(self, topic: str) -> dict[str, set[str]]:
        """Return the members of a topic on Redis."""
        found: dict[str, set[str]] = {}
        for ref, member in parse_members(self.call(read_call(topic))).items():
            found.setdefault(member.id, set()).add(ref)
        return found

    def true_members(self, topic: str) -> dict[str, set[str]]:
        """Return the members of a topic that are connected to a node."""
        found: dict[str, set[str]] = {}
        for node in self.nodes:
            for browser in node.browsers.values() if node.alive else ():
                if browser.topic == topic:
                    found.setdefault(browser.id, set()).add(browser.ref)
        return found
