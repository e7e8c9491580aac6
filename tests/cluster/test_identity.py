"""The name of a node: which of two servers may use it."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from tangram.cluster.identity import ANSWER_TIME, HERE, WHO, Identity, NameStep

TTL = 6.0


def test_a_free_name_is_owned_at_once() -> None:
    """Without a record, and with its own one, nothing is asked."""
    mine = Identity("a", "run1")

    assert mine.beaten(0.0, "") is NameStep.GO_ON
    assert mine.beaten(2.0, "run1") is NameStep.GO_ON
    assert mine.owns


def test_a_dead_owner_loses_the_name_after_the_time_for_an_answer() -> None:
    """A server that was killed starts again long before its record expires."""
    mine = Identity("a", "run2")
    assert mine.beaten(0.0, "run1") is NameStep.ASK
    mine.interrupted()  # the question could not be published
    assert mine.beaten(0.1, "run1") is NameStep.ASK
    assert mine.beaten(0.15, "run1") is NameStep.WAIT
    mine.asked(0.2)

    assert mine.beaten(0.3, "run1") is NameStep.WAIT
    assert mine.beaten(0.2 + ANSWER_TIME, "run1") is NameStep.TAKE
    assert not mine.owns
    assert mine.beaten(0.8, "run2") is NameStep.GO_ON


def test_an_owner_that_answers_keeps_the_name() -> None:
    """The one that asks learns the place of the other one, and ends."""
    old, new = Identity("a", "run1", "process 1 on x"), Identity("a", "run2", "process 2 on y")
    assert new.beaten(0.0, "run1") is NameStep.ASK
    question = new.question
    answer = old.heard(question)

    assert question == {"what": WHO, "node": "a", "run": "run1", "place": "process 2 on y"}
    assert answer == {"what": HERE, "node": "a", "run": "run1", "place": "process 1 on x"}
    # It may come on one connection before Redis confirms the question on the other one.
    assert new.heard(answer) is None
    new.asked(0.05)
    assert (new.beaten(0.1, "run1"), new.rival) == (NameStep.END, "process 1 on x")
    # The other one has left since: the name is free.
    assert new.beaten(0.2, "") is NameStep.GO_ON
    assert new.rival == ""


def test_questions_to_others_are_not_answered() -> None:
    """Another name, another run, and changes of other kinds are none of its business."""
    mine = Identity("a", "run1")
    for change in (
        {"what": WHO, "node": "b", "run": "run1"},
        {"what": WHO, "node": "a", "run": "run2"},
        {"what": "joined", "node": "a"},
        {"what": HERE, "node": "a", "run": "run1"},
        {},
    ):
        assert mine.heard(change) is None
    assert mine.rival == ""


def test_an_answer_that_may_have_been_missed_is_asked_for_again() -> None:
    """While the subscriber connection was lost, an owner may have answered."""
    mine = Identity("a", "run2")
    mine.beaten(0.0, "run1")
    mine.asked(0.0)
    mine.interrupted()

    assert mine.beaten(5.0, "run1") is NameStep.ASK


def test_a_run_that_was_stopped_while_it_asked_asks_again() -> None:
    """It may have missed the answer, and must not take the name of a server that is alive."""
    mine = Identity("a", "run2")
    mine.beaten(0.0, "run1")
    mine.asked(0.0)

    assert mine.beaten(14.0, "run1") is NameStep.ASK
    mine.asked(14.0)
    assert mine.beaten(14.0 + ANSWER_TIME, "run1") is NameStep.TAKE


class Server:
    """One server with the name; it may be paused, and then does nothing."""

    def __init__(self, run: str) -> None:
        self.identity = Identity("a", run, run)
        self.run = run
        self.paused = self.ended = False
        self.paused_at = -100.0


class World:
    """One record on Redis, and servers that all have its name."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.now = 0.0
        self.owner, self.expires = "", 0.0
        self.servers: list[Server] = []
        self.robbed: list[str] = []

    def beat(self, server: Server) -> None:
        before = self.owner if self.now < self.expires else ""
        if before in {"", server.run}:
            self.owner, self.expires = server.run, self.now + TTL
        match server.identity.beaten(self.now, before):
            case NameStep.ASK:
                self.ask(server)
            case NameStep.TAKE:
                self.claim(server, before)
            case NameStep.END:
                server.ended = True
            case NameStep.GO_ON | NameStep.WAIT:
                pass

    def ask(self, asking: Server) -> None:
        question = asking.identity.question
        asking.identity.asked(self.now)
        for one in self.servers:
            answer = None if one.paused or one.ended else one.identity.heard(question)
            if answer is not None:
                asking.identity.heard(answer)

    def claim(self, server: Server, owner: str) -> None:
        if self.owner != owner:
            return
        for one in self.servers:
            if one.run == owner and not one.ended and not one.paused and self.now - one.paused_at > 1.0:
                self.robbed.append(owner)
        self.owner = server.run

    def step(self, what: str, number: int) -> None:
        self.now += self.rng.uniform(0.05, 0.4)
        if what == "start":
            self.servers.append(Server(f"run{len(self.servers)}"))
        running = [one for one in self.servers if not one.ended]
        if not running:
            return
        server = running[number % len(running)]
        if what == "kill":
            server.ended = True
        elif what == "pause":
            server.paused = not server.paused
            server.paused_at = self.now
        for one in running:
            if not (one.ended or one.paused):
                self.beat(one)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["start", "start", "kill", "pause", "time", "time"]), st.integers(0, 5)),
        max_size=60,
    ),
    st.integers(0, 1000),
)
def test_one_server_keeps_the_name(steps: list[tuple[str, int]], seed: int) -> None:
    """No server that answers loses its name, and of those that run one is left in the end."""
    world = World(random.Random(seed))
    for what, number in steps:
        world.step(what, number)
    for one in world.servers:
        one.paused_at = world.now if one.paused else one.paused_at
        one.paused = False
    for _ in range(40):
        world.step("time", 0)
    running = [one for one in world.servers if not one.ended]

    assert world.robbed == []
    assert len(running) <= 1
    assert all(one.identity.owns and world.owner == one.run for one in running)
    if world.servers and not any(what == "kill" for what, _ in steps):
        assert running
