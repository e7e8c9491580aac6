"""Which Redis is the primary, by the answers of sentinels and nodes."""

from __future__ import annotations

import random

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from tangram.errors import BrokerUnavailable
from tangram.history.library import GUARD, data_key
from tangram.primary.answers import (
    MAX_GUIDES,
    SLOT,
    GuideAnswer,
    Guides,
    is_moved,
    newest,
    questions,
    read,
    require_primary,
)
from tangram.redis_url import parse_redis_url

SENTINEL = parse_redis_url("redis+sentinel://a:1,b:2/?master=m")
CLUSTER = parse_redis_url("redis+cluster://a:1,b:2")
HERE = ("asked", 7000)


def test_the_slot_is_that_of_the_servers_own_keys() -> None:
    """redis-py computes the same one for them."""
    assert key_slot(GUARD.encode()) == key_slot(data_key("a:{b}", "stream").encode()) == SLOT


def test_a_sentinel_names_the_primary_its_epoch_and_further_sentinels() -> None:
    """The address comes from the first question, because the second one names the old primary for longer."""
    answers = [
        [b"10.0.0.2", b"6380"],
        [b"name", b"m", b"ip", b"10.0.0.1", b"port", b"6379", b"config-epoch", b"7"],
        [[b"ip", b"10.0.0.9", b"port", b"26379"], [b"ip", b"", b"port", b"x"], b"no instance"],
    ]
    assert read(SENTINEL, HERE, answers) == GuideAnswer(("10.0.0.2", 6380), 7, (("10.0.0.9", 26379),))
    assert [words[1] for words in questions(SENTINEL)] == ["GET-MASTER-ADDR-BY-NAME", "MASTER", "SENTINELS"]


def test_refused_further_questions_leave_the_address() -> None:
    """An account with the right to one question alone is enough."""
    refused = hiredis.ReplyError("NOPERM no")
    assert read(SENTINEL, HERE, [[b"h", b"1"], refused, refused]) == GuideAnswer(("h", 1), 0)


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (None, "knows no master 'm'"),
        ([b"", b"1"], "knows no master 'm'"),
        ([b"h", b"99999"], "knows no master 'm'"),
        (hiredis.ReplyError("NOAUTH Authentication required."), "NOAUTH"),
    ],
)
def test_a_sentinel_without_the_primary_is_a_fault(answer: object, what: str) -> None:
    """The message says what the sentinel lacks."""
    with pytest.raises(BrokerUnavailable, match=what):
        read(SENTINEL, HERE, [answer, None, None])


NODES = f"""\
id1 10.0.0.1:6379@16379,one.example master - 0 0 1 connected 0-{SLOT - 1}
id2 :6380@16380 myself,master - 0 0 4 connected {SLOT} {SLOT + 5}-16383 [{SLOT}->-id1]
id3 10.0.0.3:6379@16379 slave id2 0 0 4 connected
id4 :0@0 master,noaddr - 0 0 3 disconnected
id5 ::1:6379@16379 handshake - 0 0 0 connected
short line
"""


def test_a_node_of_a_cluster_names_the_owner_of_the_slot() -> None:
    """A node that does not know its own address has the one at which it was asked."""
    found = read(CLUSTER, HERE, [NODES.encode()])

    assert found.primary == ("asked", 6380)
    assert found.epoch == 4
    assert found.guides == (("10.0.0.1", 6379), ("asked", 6380), ("10.0.0.3", 6379))
    with pytest.raises(BrokerUnavailable, match=f"has slot {SLOT}"):
        read(CLUSTER, HERE, [NODES.splitlines()[0].encode()])
    secured = parse_redis_url("rediss+cluster://a:1")
    assert read(secured, HERE, [NODES.encode()]).guides[0] == ("one.example", 6379)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), min_size=1))
def test_the_answer_with_the_highest_epoch_counts(views: list[tuple[int, int]]) -> None:
    """A sentinel that missed the failover is outvoted, in whatever order the answers come."""
    chosen = newest([GuideAnswer(("h", port), epoch) for epoch, port in views])

    assert chosen.epoch == max(epoch for epoch, _ in views)


@pytest.mark.parametrize("seed", range(20))
def test_listed_guides_are_never_forgotten(seed: int) -> None:
    """Learned guides come and go with the answers; there are at most ``MAX_GUIDES`` of both."""
    rng = random.Random(seed)
    listed = [("a", 1), ("b", 2)]
    guides = Guides(listed)
    for _ in range(30):
        names = [(rng.choice("abcd"), rng.randrange(1, 40)) for _ in range(rng.randrange(60))]
        guides.learn(GuideAnswer(("h", 1), 0, tuple(names)))

        assert list(guides.all()[:2]) == listed
        assert len(guides.all()) <= MAX_GUIDES
        assert len(set(guides.all())) == len(guides.all())
        assert not names or set(guides.all()) <= {*listed, *names}


def test_a_replica_is_not_taken_for_the_primary() -> None:
    """An account that may not ask for the role gets no check."""
    require_primary([b"master", 0, []])
    require_primary(None)
    with pytest.raises(BrokerUnavailable, match="a 'slave'"):
        require_primary([b"slave", b"h", 1, b"connected", 0])


def test_redirections_and_readonly_say_that_another_redis_is_the_primary() -> None:
    """Other errors do not."""
    moved = ["MOVED 15495 h:1", "ASK 1 h:1", "READONLY You can't write against a read only replica."]
    assert all(is_moved(hiredis.ReplyError(text)) for text in moved)
    assert not is_moved(hiredis.ReplyError("ERR MOVED"))
    assert not is_moved(b"MOVED 1 h:1")
