"""Several nodes, one Redis and no real time: the rules of leases under faults, by seed.

1. The rules of ``tangram.cluster`` and the twin of the functions on Redis are the real ones. The network, the
   clocks and the plugins are simulated, as events on one queue.
2. Each node has a clock of its own, which is ahead or behind and runs up to 4 percent faster or slower than
   that of Redis. Messages take their time, and may be lost or late. Nodes die, are cut off or paused, and
   Redis comes back without its data.
3. Each active plugin publishes with its token. Two incarnations may never be active at once unless one of
   their nodes was paused, and a message of an older holder may never follow one of a newer holder.
4. Servers start with the name of another one. No server that can answer may lose its name, and of those with
   one name a single one owns it.
"""

from __future__ import annotations

import heapq
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import attrs
import msgspec

from tangram.bus.scripts import Fence, FunctionCall
from tangram.cluster.book import LeaseBook
from tangram.cluster.identity import ANSWER_TIME, Identity, NameStep
from tangram.cluster.lease import Lease, LeaseState, stop_limit
from tangram.cluster.library import (
    CHANGES,
    LIBRARY,
    beat_call,
    claim_call,
    fence_key,
    give_call,
    parse_beat,
    parse_take,
    take_call,
)
from tangram.testing.fakes.valkey.functions import call_function, load_library
from tangram.testing.fakes.valkey.server import Valkey
from tangram.testing.fakes.valkey.wire import ReplyError

__all__ = ["NodesOutcome", "simulate"]

NAME: Final = "globe"
TTL: Final = 6.0
BEAT: Final = TTL / 3
SECONDS: Final = 90.0
"""Seconds of one run."""
DRIFT: Final = 0.04
"""The largest share by which a clock differs: two of them together stay below the tenth of the rules."""


@attrs.frozen
class NodesOutcome:
    """The end of one run."""

    seed: int
    starts: int
    """How often the plugin was started."""
    overlaps: Sequence[str]
    """Two active incarnations without a pause."""
    stale: Sequence[str]
    """Messages of an older holder behind one of a newer one."""
    names: Sequence[str]
    """Names that a live server has lost, or that two servers own."""
    twins: int
    """Servers that started with the name of another one."""
    published: int
    refused: int


class _Node:
    """One node: rules, a clock, and a plugin that is active or not."""

    def __init__(self, world: _World, node: str) -> None:
        rng = world.rng
        self.world, self.id = world, node
        self.rate = 1 + rng.uniform(-DRIFT, DRIFT)
        self.offset = rng.uniform(-3600, 3600)
        self.cut = self.paused = False
        self.was_paused = False
        self.generation = 0
        self.active = False
        self.begin()

    def begin(self) -> None:
        """Start the process anew."""
        self.die()
        self.dead = False
        self.lost_redis = self.ended_by_rival = False
        self.run = self.world.word()
        self.identity = Identity(self.id, self.run)
        self.book = LeaseBook(self.id, TTL, self.world.word)
        self.lease: Lease = self.book.lease(NAME)
        self.lease.want()
        self.after(0.0, self.beat)
        self.after(self.world.rng.uniform(0, 0.2), self.step)

    def die(self) -> None:
        """End the process without a word."""
        self.generation += 1
        self.active = False
        self.dead = True
        self.disturbed()

    def disturbed(self) -> None:
        """Note that the process begins or ends to be away."""
        self.last_disturbed = self.world.now

    def can_answer(self, seconds: float) -> bool:
        """Return whether nothing has kept it from answering for so long."""
        away = self.dead or self.cut or self.paused or self.ended_by_rival
        faulty = self.world.loss or self.world.slowness
        return not away and not faulty and self.world.now - self.last_disturbed > seconds

    def now(self) -> float:
        return self.world.now * self.rate + self.offset

    def after(self, seconds: float, run: Callable[[], None]) -> None:
        """Run a function later, by this node's clock, in this process; a pause delays it."""
        generation = self.generation

        def due() -> None:
            if generation != self.generation:
                return
            if self.paused:
                self.world.at(0.05, due)
            else:
                run()

        self.world.at(max(0.0, seconds) / self.rate, due)

    # The shell: what ``nodes.py`` and ``placement.py`` do.

    def beat(self) -> None:
        self.beat_once()
        if not self.ended_by_rival:
            self.after(BEAT, self.beat)

    def beat_once(self) -> None:
        sent, asked = self.now(), self.book.asked()
        for name, value in list(self.book.to_release.items()):
            del self.book.to_release[name]
            self.call(give_call(name, value), lambda _answer: None)

        def answered(answer: Any) -> None:
            beat = parse_beat(answer)
            if self.ended_by_rival:
                return
            step = self.identity.beaten(self.now(), beat.before)
            if step is not NameStep.GO_ON:
                self.settle_name(step)
                return
            again = self.book.answered(sent, self.now(), asked, beat.leases, beat.storage)
            self.follow()
            if again:
                self.take()

        self.call(beat_call(self.id, {"run": self.run}, TTL, self.world.word(), asked), answered)

    def settle_name(self, step: NameStep) -> None:
        """Ask the owner of the name, take the name from it, or end."""
        match step:
            case NameStep.ASK:
                self.identity.asked(self.now())
                self.publish_change(self.identity.question)
                self.after(ANSWER_TIME, self.beat_once)
            case NameStep.TAKE:
                owner = self.identity.owner
                call = claim_call(self.id, owner, self.run)
                self.call(call, lambda answer: self.world.claimed(self, owner) if answer else None)
                self.after(0.1, self.beat_once)
            case NameStep.END:
                # Its plugin ends like that of a node that is cut off: at the deadline of the lease.
                self.ended_by_rival = True
                self.follow()
            case _:
                pass

    def publish_change(self, change: Mapping[str, str]) -> None:
        payload = msgspec.json.encode(change)
        self.send(lambda: self.world.deliver(CHANGES, payload), lambda _answer: None)

    def hear(self, change: dict[str, str]) -> None:
        """Take a change that a node has published."""
        answer = self.identity.heard(change)
        if answer is not None and not self.ended_by_rival:
            self.publish_change(answer)
        if self.identity.rival:
            self.beat_once()
        self.book.heard(self.now(), change)

    def take(self) -> None:
        sent, value = self.now(), self.lease.value
        storage = "" if self.lease.held else self.book.storage

        def answered(answer: Any) -> None:
            parsed = parse_take(answer)
            self.book.storage = self.book.storage or parsed.storage
            unwanted = self.lease.take_answered(sent, self.now(), parsed, value)
            if unwanted:
                self.call(give_call(NAME, unwanted), lambda _answer: None)
            self.follow()

        self.call(take_call(NAME, value, TTL, storage, self.world.word()), answered)

    def step(self) -> None:
        """Look at the deadline, try to take the lease, and publish."""
        self.follow()
        wants = self.lease.state is LeaseState.STANDBY and self.identity.owns
        if wants and self.now() >= self.lease.take_at(0.0):
            self.take()
        if self.active:
            self.world.publish(self)
        self.after(self.world.rng.uniform(0.1, 0.4), self.step)

    def follow(self) -> None:
        """Start the plugin with its lease, and stop it at its deadline."""
        self.lease.expire(self.now())
        if self.lease.held and not self.active:
            self.active = True
            self.world.started(self)
            self.watch()
        elif self.lease.state is LeaseState.LOST and self.active:
            # The plugin takes all the time that it has for its stop.
            left = min(self.lease.stop_by - self.now(), stop_limit(TTL))
            self.after(self.world.rng.uniform(0, max(0.0, left)), self.ended)
        elif self.lease.state is LeaseState.LOST:
            self.lease.ended()

    def watch(self) -> None:
        """Wait for the deadline, as a cancel scope does."""
        if self.lease.held and self.active:
            if self.now() >= self.lease.deadline:
                self.follow()
            else:
                self.after(max(1e-3, self.lease.deadline - self.now()), self.watch)

    def ended(self) -> None:
        self.active = False
        self.lease.ended()

    def give_away(self) -> None:
        """Stop the plugin as planned, and release its lease then."""
        if not (self.active and self.lease.held):
            return
        self.active = False
        self.book.release(NAME, self.now(), shun=True)
        self.call(give_call(NAME, self.book.to_release.pop(NAME)), lambda _answer: None)
        self.lease.want()

    def call(self, call: FunctionCall, done: Callable[[Any], None]) -> None:
        """Call a function on Redis."""
        self.send(lambda: self.world.execute(call), done)

    def send(self, command: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Send a command; it may be lost, late, or carried out without an answer."""
        world, generation, rng = self.world, self.generation, self.world.rng
        slow = rng.random() < world.slowness

        def arrive() -> None:
            if self.cut and not slow:
                return
            answer = command()
            if isinstance(answer, ReplyError) or rng.random() < world.loss:
                return
            back = rng.uniform(1.0, 9.0) if rng.random() < world.slowness else rng.uniform(0.001, 0.02)
            world.at(back, lambda: arrive_back(answer))

        def arrive_back(answer: Any) -> None:
            if generation != self.generation:
                return
            if self.paused:
                world.at(0.05, lambda: arrive_back(answer))
            elif not self.cut:
                if self.lost_redis:
                    self.lost_redis = False
                    self.book.distrust(self.now())
                done(answer)

        if not self.cut and rng.random() >= world.loss:
            world.at(rng.uniform(1.0, 9.0) if slow else rng.uniform(0.001, 0.02), arrive)


class _World:
    """The queue of events, Redis, and the findings."""

    def __init__(self, seed: int, nodes: int) -> None:
        self.rng = rng = random.Random(seed)  # noqa: S311 - reproducible
        self.now = 1000.0
        self.overlaps: list[str] = []
        self.stale: list[str] = []
        self.starts = self.published = self.refused = 0
        self.loss = rng.choice((0.0, 0.02, 0.2))
        self.slowness = rng.choice((0.0, 0.02, 0.2))
        self._newest = 0
        self._emptied = 0.0
        self._count = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._redis = Valkey(lambda: self.now, self.deliver)
        self._session = self._redis.connect(lambda: None, lambda: None)
        load_library(self._redis, self._session, [b"LOAD", b"REPLACE", LIBRARY.text.encode()])
        self.names: list[str] = []
        self.twins = 0
        self.nodes = [_Node(self, f"n{number}") for number in range(nodes)]
        for _ in range(rng.randrange(12)):
            self.at(rng.uniform(0, SECONDS * 0.8), self._fault)

    def word(self) -> str:
        return f"{self.rng.getrandbits(48):x}"

    def at(self, seconds: float, run: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (self.now + seconds, self._count, run))

    def run(self) -> None:
        end = self.now + SECONDS
        while self._queue and self._queue[0][0] <= end:
            self.now, _, run = heapq.heappop(self._queue)
            run()

    def execute(self, call: FunctionCall) -> Any:
        words = [call.function, str(len(call.keys)), *call.keys, *call.arguments]
        encoded = [word.encode() if isinstance(word, str) else word for word in words]
        try:
            return call_function(self._redis, self._session, encoded)
        except ReplyError as error:
            return error

    def deliver(self, channel: bytes, payload: bytes) -> int:
        """Let the nodes hear a change."""
        if channel == CHANGES:
            change = msgspec.json.decode(payload, type=dict[str, str])
            for node in self.nodes:
                if not node.cut:
                    generation = node.generation
                    self.at(
                        self.rng.uniform(0.001, 0.05),
                        lambda node=node, generation=generation: self._tell(node, generation, change),  # type: ignore[misc]
                    )
        return 1

    def _tell(self, node: _Node, generation: int, change: dict[str, str]) -> None:
        if generation == node.generation and not node.cut and not node.paused:
            node.hear(change)

    def started(self, node: _Node) -> None:
        self.starts += 1
        for other in self.nodes:
            if other is not node and other.active and not (other.was_paused or node.was_paused):
                self.overlaps.append(f"{self.now:.3f}: {node.id} beside {other.id}")

    def publish(self, node: _Node) -> None:
        """Let the plugin publish, if the network lets it."""
        if node.cut:
            return
        token = node.lease.token
        call = Fence(fence_key(NAME), str(token)).guard("to:globe:turn", str(token), None)
        delay = self.rng.uniform(1.0, 9.0) if self.rng.random() < self.slowness else 0.001

        def arrive() -> None:
            if isinstance(self.execute(call), ReplyError):
                self.refused += 1
                if node.lease.token == token:
                    node.lease.forget_token()
                return
            self.published += 1
            if token < self._newest:
                self.stale.append(f"{self.now:.3f}: {node.id} with {token}, after {self._newest}")
            self._newest = max(self._newest, token)

        self.at(delay, arrive)

    def claimed(self, taker: _Node, owner: str) -> None:
        """Look whether a node that could answer has lost its name."""
        for node in self.nodes:
            if node.run == owner and node is not taker and node.can_answer(2 * ANSWER_TIME):
                self.names.append(f"{self.now:.3f}: {node.id} lost its name and was alive")

    def look_at_names(self) -> None:
        """Look at the end whether two servers own one name."""
        owners = [node.id for node in self.nodes if node.identity.owns and node.can_answer(3 * BEAT)]
        self.names += [f"two own {name}" for name in set(owners) if owners.count(name) > 1]

    def _begin(self, node: _Node) -> None:
        """Start a node again, but not while Redis has just lost its data (docs/nodes.md)."""
        if self.now - self._emptied < 2 * TTL:
            self.at(1.0, lambda: self._begin(node))
        else:
            node.begin()

    def _start_twin(self, node: _Node) -> None:
        """Start a server with the name of another one, at a time at which `_begin` starts nodes."""
        if self.now - self._emptied < 2 * TTL:
            self.at(1.0, lambda: self._start_twin(node))
        else:
            self.twins += 1
            self.nodes.append(_Node(self, node.id))

    def _keep_away(self, node: _Node, how: str, seconds: float) -> None:
        def keep(value: bool) -> None:
            setattr(node, how, value)
            node.disturbed()

        keep(True)
        self.at(seconds, lambda: keep(False))

    def _fault(self) -> None:
        node, seconds = self.rng.choice(self.nodes), self.rng.uniform(0.2, 15.0)
        kind = self.rng.choice(("die", "cut", "cut", "pause", "empty", "move", "break", "twin"))
        if kind == "die":
            node.die()
            self.at(seconds, lambda: self._begin(node))
        elif kind == "cut":
            node.lost_redis = True
            self._keep_away(node, "cut", seconds)
        elif kind == "pause":
            node.was_paused = True
            self._keep_away(node, "paused", seconds)
        elif kind == "empty":
            # Every connection breaks with it, and nodes that start now do not know that anything was lost.
            self._redis.execute(self._session, [b"FLUSHALL"])
            self._emptied = self.now
            for one in self.nodes:
                one.lost_redis = True
                if not (one.book.storage or one.active):
                    # It has not had an answer yet, and knows no more than one that starts now.
                    one.die()
                    self._begin(one)
        elif kind == "move":
            node.give_away()
        elif kind == "twin":
            self._start_twin(node)
        else:
            node.lost_redis = True


def simulate(seed: int, nodes: int = 3) -> NodesOutcome:
    """Run several nodes under drawn faults, and return the findings."""
    world = _World(seed, nodes)
    world.run()
    world.look_at_names()
    return NodesOutcome(
        seed,
        world.starts,
        world.overlaps,
        world.stale,
        world.names,
        world.twins,
        world.published,
        world.refused,
    )


def main(words: Sequence[str]) -> int:
    """Run the seeds up to a number, and print the findings; return 1 if there are any."""
    seeds = int(words[0]) if words else 10_000
    outcomes = [simulate(seed) for seed in range(seeds)]
    found = [one for one in outcomes if one.overlaps or one.stale or one.names]
    for one in found:
        sys.stdout.write(f"seed {one.seed}: {'; '.join([*one.overlaps, *one.stale, *one.names])}\n")
    starts, refused = sum(one.starts for one in outcomes), sum(one.refused for one in outcomes)
    twins = sum(one.twins for one in outcomes)
    sys.stdout.write(
        f"{seeds} seeds, {starts} starts, {refused} messages refused, {twins} servers with the name of "
        f"another one, {len(found)} seeds failed\n"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
