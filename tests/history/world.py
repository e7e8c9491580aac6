"""A world without I/O: one Redis in memory, nodes with recorder and feed, publishers and clients.

A seed draws every step: which message is published and how, how far each node has read its feed, which answer
is lost, which node crashes or hangs, and which client goes away and comes back. Each client keeps the numbers
that it saw. It must never miss one unless the server has told it so.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Iterator

import attrs

from tangram.bus.scripts import FunctionCall
from tangram.channels.catchup import Catchup
from tangram.channels.hub import POSITION
from tangram.errors import BrokerUnavailable
from tangram.gateway.recovery import _catchup, _Group
from tangram.history.feed import Delivery, Feed, Gap, Live
from tangram.history.library import library
from tangram.history.recorder import LEASE_TIME, Recorder
from tangram.history.replay import parse_replay, read_call
from tangram.history.rules import STAMPS, History, Rule, Rules
from tangram.history.stamps import hello
from tangram.testing.fakes.valkey.functions import call_function, load_library
from tangram.testing.fakes.valkey.server import Valkey

TOPICS = ("a", "b", "mixed")
RULES = [Rule("*", History(size=40, ttl=1000.0))]


@attrs.define(eq=False)
class Client:
    """A browser that counts: numbers of each topic must come without a hole."""

    topic: str
    position: str = ""
    seen: dict[str, list[int]] = attrs.Factory(lambda: {"native": [], "plain": []})
    """Numbers by the way in which they were published: each publisher has an order of its own."""
    node: Node | None = None
    told: int = 0
    """How often it was told that it may have missed messages."""
    recovered: int = 0
    """How often it was told that it has missed none."""
    faults: list[str] = attrs.Factory(list)

    def joined(self, node: Node, catchup: Catchup, received: int) -> None:
        """Take the reply and what follows it, unless the connection is cut after ``received`` events."""
        self.node = node
        if catchup.response["recovered"]:
            self.recovered += 1
        if self.position and not catchup.response["recovered"]:
            self.told += 1
            for seen in self.seen.values():
                seen.clear()
        self.position = str(catchup.response["position"])
        for _, payload in catchup.events[:received]:
            self.take(payload)
        if received < len(catchup.events):
            self.node = None
        elif catchup.events:
            self.position = catchup.position

    def take(self, payload: bytes) -> None:
        way, _, text = payload.decode().partition(" ")
        number, seen = int(text), self.seen[way]
        if seen and number > max(seen) + 1:
            self.faults.append(f"{way} {number} after {seen[-3:]}")
        seen.append(number)


@attrs.define(eq=False)
class Joining:
    """A join whose answer and marker are on their way."""

    client: Client
    group: _Group


class Node:
    """One node: a recorder above, and a feed of the present incarnation below."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.rules = Rules(RULES, new_epoch=world.new_epoch)
        self.recorder = Recorder(self.rules, name)
        self.upper: deque[tuple[bytes, bytes]] = deque()
        """Messages that the recorder has not read yet."""
        self.recorder_answers: deque[object] = deque()
        self.incarnation = 0
        self.restart_incarnation()

    def restart_incarnation(self) -> None:
        """Begin a new feed; members of the old one are away."""
        self.incarnation += 1
        self.rules = Rules(RULES, new_epoch=self.world.new_epoch)
        self.feed = Feed(self.rules, f"{self.name}.{self.incarnation}")
        self.lower: deque[tuple[bytes, bytes]] = deque()
        self.joining: dict[str, Joining] = {}
        for client in self.world.clients:
            if client.node is self:
                client.node = None

    def read_upper(self, count: int) -> None:
        """Let the recorder read some messages, and act on them."""
        for _ in range(min(count, len(self.upper))):
            channel, payload = self.upper.popleft()
            pattern = STAMPS if channel == STAMPS else b"to:*:*"
            self.recorder.take(pattern, channel, payload)
        for answer in self.recorder.answers():
            self.world.publish(STAMPS, answer)

    def record(self, *, lose_answer: bool, lose_call: bool) -> None:
        """Make one step of the recorder; its answer, or the call itself, may be lost."""
        step = self.recorder.next_step()
        if step is None:
            return
        answer: object = BrokerUnavailable("lost")
        if not lose_call:
            answer = self.world.call(step)
        if lose_answer or lose_call:
            answer = BrokerUnavailable("lost")
        if self.recorder.step_answered(answer) and self.world.rng.random() < 0.7:
            # Otherwise Redis refuses this as well, and the next look at the lease has to do it.
            self.world.call(self.recorder.release_call())
            self.world.call(self.recorder.lease_call())

    def look_at_lease(self) -> None:
        """Take or renew the lease; a node that is not in step says hello first."""
        recorder = self.recorder
        if recorder.unrecorded.recorder is None:
            self.world.publish(STAMPS, hello(recorder.unrecorded.next_hello()))
            if self.world.rng.random() < 0.7:
                return
        if recorder.number is None:
            self.world.call(recorder.release_call())
        self.world.call(recorder.lease_call())

    def interrupt_recorder(self) -> None:
        """Lose the connection of the recorder's feed, and subscribe again."""
        self.upper.clear()
        self.recorder.interrupted()

    def read_lower(self, count: int) -> None:
        """Let the channels read some messages."""
        batch = [self.lower.popleft() for _ in range(min(count, len(self.lower)))]
        for step in self.feed.take(batch):
            if isinstance(step, Delivery):
                self._deliver(step)
            elif isinstance(step, Live):
                self._go_live(step)
            else:
                self._gap(step)

    def _members(self, topic: str) -> Iterator[Client]:
        return (one for one in self.world.clients if one.node is self and one.topic == topic)

    def _deliver(self, step: Delivery) -> None:
        for channel, payload in step.batch:
            if channel == POSITION:
                topic, _, at = payload.partition(b"\0")
                for client in self._members(topic.decode()):
                    client.position = at[7:-2].decode()
                continue
            topic = channel.split(b":")[1]
            for client in list(self._members(topic.decode())):
                client.take(payload)
                if self.world.rng.random() < 0.02:
                    client.node = None  # its connection is cut in the middle of a write

    def _go_live(self, live: Live) -> None:
        joining = self.joining.pop(live.nonce, None)
        if joining is None:
            return
        group = joining.group
        assert group.replay is not None
        if group.replay.certain or live.in_step:
            cut = self.world.rng.random() < 0.1
            joining.client.joined(
                self, _catchup(group, group.replay, live), self.world.rng.randrange(4) if cut else 10_000
            )

    def _gap(self, gap: Gap) -> None:
        for client in list(self._members(gap.topic)):
            client.node = None

    def join(self, client: Client) -> None:
        """Ask for the history; the member goes live when its marker is read."""
        self.world.nonces += 1
        nonce = f"n{self.world.nonces}"
        history = RULES[0].history
        answer = self.world.call(read_call(self.rules, client.topic, history, client.position, nonce))
        group = _Group(client.topic, client.position, history, replay=parse_replay(answer))
        self.joining[nonce] = Joining(client, group)
        self.feed.expected.add(nonce)


class World:
    """One run, drawn from a seed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.nonces = 0
        self.epochs = 0
        self.numbers: Counter[tuple[str, str]] = Counter()
        self.clients = [Client(topic) for topic in TOPICS for _ in range(2)]
        self.nodes: list[Node] = []
        self.valkey = Valkey(lambda: self.now, self.publish)
        self.session = self.valkey.connect(lambda: None, lambda: None)
        load_library(self.valkey, self.session, [b"LOAD", b"REPLACE", library().encode()])
        self.nodes = [Node(self, f"node{number}") for number in range(2)]

    def new_epoch(self) -> str:
        self.epochs += 1
        return f"e{self.epochs}"

    def publish(self, channel: bytes, payload: bytes) -> int:
        for node in self.nodes:
            node.upper.append((channel, payload))
            node.lower.append((channel, payload))
        return len(self.nodes)

    def call(self, call: FunctionCall) -> object:
        words = [call.function, str(len(call.keys)), *call.keys, *call.arguments]
        return call_function(
            self.valkey, self.session, [word.encode() if isinstance(word, str) else word for word in words]
        )

    def message(self, topic: str = "", way: str = "") -> None:
        """Publish the next number of a topic: by the functions on a, plainly on b, either way on mixed."""
        topic = topic or self.rng.choice(TOPICS)
        way = way or {"a": "native", "b": "plain"}.get(topic) or self.rng.choice(("native", "plain"))
        self.numbers[topic, way] += 1
        channel, payload = f"to:{topic}:n".encode(), f"{way} {self.numbers[topic, way]}".encode()
        if way == "native":
            call = self.nodes[0].rules.publishing(channel, payload)
            assert call is not None
            self.call(call)
        else:
            self.publish(channel, payload)

    def crash(self, node: Node) -> None:
        """Kill a node: its queue and its members are gone, and its lease runs out."""
        at = self.nodes.index(node)
        for client in self.clients:
            if client.node is node:
                client.node = None
        self.nodes[at] = Node(self, f"{node.name.split('.')[0]}.{self.rng.random()}")

    def step(self) -> None:
        rng = self.rng
        node = rng.choice(self.nodes)
        chance = rng.random()
        self.now += rng.random() * 0.05
        if chance < 0.30:
            self.message()
        elif chance < 0.50:
            node.read_upper(rng.randrange(8))
        elif chance < 0.70:
            node.read_lower(rng.randrange(8))
        elif chance < 0.80:
            node.record(lose_answer=rng.random() < 0.1, lose_call=rng.random() < 0.1)
        elif chance < 0.86:
            node.look_at_lease()
        else:
            self._fault(node, chance)

    def _fault(self, node: Node, chance: float) -> None:
        """Let a client come or go, or let a part fail."""
        rng = self.rng
        if chance < 0.93:
            client = rng.choice(self.clients)
            if client.node is None and not any(
                one.client is client for each in self.nodes for one in each.joining.values()
            ):
                node.join(client)
        elif chance < 0.955:
            rng.choice(self.clients).node = None
        elif chance < 0.965 and node.feed.unrecorded.recorder is None:
            self.publish(STAMPS, hello(node.feed.unrecorded.next_hello()))
        elif chance < 0.972:
            node.restart_incarnation()
        elif chance < 0.976:
            node.interrupt_recorder()
        elif chance < 0.979:
            self.crash(node)
        elif chance < 0.985:
            self.now += LEASE_TIME * rng.random() * 1.5

    def settle(self) -> None:
        """Let every queue run empty, bring all clients in, and publish once more."""
        for _ in range(60):
            self.now += 0.5
            for node in self.nodes:
                node.look_at_lease()
                node.read_upper(10_000)
                node.record(lose_answer=False, lose_call=False)
                if node.feed.unrecorded.recorder is None:
                    self.publish(STAMPS, hello(node.feed.unrecorded.next_hello()))
                node.read_upper(10_000)
                node.read_lower(10_000)
                for client in self.clients:
                    if client.node is None:
                        node.join(client)
                node.read_lower(10_000)

    def run(self, steps: int = 400) -> list[str]:
        """Return the faults of all clients."""
        # Redis learns that programs publish to "mixed" by themselves with their first recorded message.
        self.message("mixed", "plain")
        self.settle()
        for client in self.clients:
            client.node = None
        for _ in range(steps):
            self.step()
        self.settle()
        faults = [f"{one.topic}: {fault}" for one in self.clients for fault in one.faults]
        for client in self.clients:
            if client.node is None:
                faults.append(f"{client.topic}: a client could not join")
                continue
            for way, seen in client.seen.items():
                last = self.numbers[client.topic, way]
                if seen and max(seen) != last:
                    faults.append(f"{client.topic}: {way} {last} is missing at the end")
        return faults
