"""The way of a request, and whether it is sent again, for all facts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tangram.http.forward.rules import Facts, Retry, SendFailure, Step, next_step, retry_after

FACTS = st.builds(
    Facts,
    running=st.booleans(),
    holder=st.sampled_from(["here", "elsewhere", "none"]),
    reachable=st.booleans(),
    forwarded=st.booleans(),
    in_time=st.booleans(),
)


@given(FACTS)
def test_a_running_plugin_serves_and_no_other_does(facts: Facts) -> None:
    """A request is served here exactly if the plugin runs here."""
    assert (next_step(facts) is Step.SERVE) == facts.running


@given(FACTS)
def test_no_request_is_forwarded_twice(facts: Facts) -> None:
    """A forwarded request is served, refused, or waits."""
    step = next_step(facts)
    if facts.forwarded:
        assert step is not Step.FORWARD
    else:
        assert step is not Step.REFUSE


@given(FACTS)
def test_every_wait_ends(facts: Facts) -> None:
    """After its time a request that cannot be answered gets 503."""
    step = next_step(facts)
    if step is Step.WAIT:
        assert facts.in_time
    if step is Step.GIVE_UP:
        assert not facts.in_time


@given(FACTS)
def test_a_request_goes_to_a_reachable_holder_at_once(facts: Facts) -> None:
    """There is no wait while another node can answer."""
    if not facts.running and facts.holder == "elsewhere" and facts.reachable and not facts.forwarded:
        assert next_step(facts) is Step.FORWARD


class Receiver:
    """A node that may end after each step, with an application that counts what it sees."""

    def __init__(self, script: list[str]) -> None:
        self.script = script
        self.seen = 0
        self.taken: set[int] = set()
        self.number = 0

    def send(self, *, same: bool) -> SendFailure | None:
        """Take a request as a node would; return the failure that the sender notices."""
        if not same:
            self.number += 1
        event = self.script.pop(0) if self.script else "answer"
        if event == "unreachable":
            return SendFailure.NOT_SENT
        if event == "closed before":  # the connection dies on the way
            return SendFailure.UNANSWERED
        if event == "restarted":
            self.taken.clear()
            return SendFailure.FORGOTTEN
        if self.number in self.taken:
            return SendFailure.SEEN
        self.taken.add(self.number)
        if event == "moved":
            return SendFailure.MOVED
        self.seen += 1
        return SendFailure.UNANSWERED if event == "died after" else None


EVENTS = st.lists(
    st.sampled_from(["unreachable", "closed before", "restarted", "moved", "died after"]), max_size=8
)


def play(script: list[str], *, at_hand: bool, idempotent: bool) -> tuple[Receiver, bool]:
    """Send one request by the rules; return the receiver, and whether there was an answer."""
    receiver, unanswered, repeated, same = Receiver(script), 0, False, False
    for _ in range(50):
        failure = receiver.send(same=same)
        if failure is None:
            return receiver, True
        unanswered += failure is SendFailure.UNANSWERED
        retry = retry_after(
            failure, unanswered=unanswered, at_hand=at_hand, idempotent=idempotent, repeated=repeated
        )
        if retry is Retry.NEVER:
            return receiver, False
        same = retry is Retry.SAME
        if retry is Retry.ANEW and unanswered:
            repeated, unanswered = True, 0
    raise AssertionError("the sender never gives up")


@given(EVENTS, st.booleans())
def test_no_application_sees_a_post_twice(script: list[str], at_hand: bool) -> None:
    """Whatever the network and the nodes do."""
    receiver, _ = play(script, at_hand=at_hand, idempotent=False)
    assert receiver.seen <= 1


@given(EVENTS)
def test_an_idempotent_request_is_repeated_once(script: list[str]) -> None:
    """A request that ends its node must not end one node after the other."""
    receiver, _ = play(script, at_hand=True, idempotent=True)
    assert receiver.seen <= 2


@given(st.lists(st.sampled_from(["unreachable", "moved", "restarted"]), max_size=8))
def test_refusals_cost_no_request(script: list[str]) -> None:
    """While no application can have seen it, every request is answered in the end."""
    receiver, answered = play(script, at_hand=True, idempotent=False)
    assert answered
    assert receiver.seen == 1


def test_a_connection_that_died_idle_costs_no_request() -> None:
    """A POST on it is sent again with its number, and is answered."""
    receiver, answered = play(["closed before"], at_hand=True, idempotent=False)
    assert (receiver.seen, answered) == (1, True)


def test_a_body_that_is_gone_is_never_sent_again() -> None:
    """Its bytes are not at hand any more."""
    for failure in SendFailure:
        assert (
            retry_after(failure, unanswered=1, at_hand=False, idempotent=True, repeated=False) is Retry.NEVER
        )
