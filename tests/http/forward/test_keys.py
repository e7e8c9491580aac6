"""The proof between nodes: only once, only with the key, only for this request."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tangram.http.forward.keys import (
    MAX_FRESH,
    NONCE_BYTES,
    WINDOW,
    Keyring,
    NodeSession,
    SessionTable,
    Verdict,
)

NONCE = bytes(range(NONCE_BYTES))
REQUEST = b"GET\n/\nhost:a\n"


def greeting(keyring: Keyring, sender: str = "a", receiver: str = "b", nonce: bytes = NONCE) -> bytes:
    return b"%b %b %b" % (sender.encode(), nonce.hex().encode(), keyring.greet(sender, receiver, nonce))


def opened(name: bytes = b"s" * NONCE_BYTES) -> tuple[SessionTable, NodeSession]:
    keyring = Keyring("secret")
    table = SessionTable(keyring, "b")
    answer = table.open(greeting(keyring), name)
    assert answer == b"%b %b" % (name.hex().encode(), keyring.answer("a", "b", NONCE, name))
    return table, NodeSession(name.hex().encode(), keyring.session_key(NONCE, name))


def test_a_request_is_accepted_once() -> None:
    """The same proof again is a replay."""
    table, session = opened()
    proof = session.seal(session.next_number(), REQUEST)

    assert table.check(proof, REQUEST) is Verdict.ACCEPTED
    assert table.check(proof, REQUEST) is Verdict.SEEN


@given(st.integers(0, len(REQUEST) - 1), st.integers(1, 255))
def test_a_changed_request_is_refused(place: int, change: int) -> None:
    """The proof covers every byte of method, target and fields, and a refusal uses up no number."""
    table, session = opened()
    proof = session.seal(1, REQUEST)
    changed = bytearray(REQUEST)
    changed[place] ^= change

    assert table.check(proof, bytes(changed)) is Verdict.FORGED
    assert table.check(proof, REQUEST) is Verdict.ACCEPTED


def test_a_node_with_another_secret_opens_no_session() -> None:
    """Neither does a greeting for another node, or a malformed one."""
    table = SessionTable(Keyring("secret"), "b")
    for wrong in (
        greeting(Keyring("another secret")),
        greeting(Keyring("secret"), receiver="c"),
        greeting(Keyring("secret")).replace(b"a ", b"x ", 1),
        greeting(Keyring("secret"), nonce=b"short"),
        b"",
        b"a b c",
        b"a zz \xff",
        b" ".join([b"a"] * 9),
    ):
        assert table.open(wrong, b"s" * NONCE_BYTES) is None


def test_names_of_nodes_cannot_be_moved_between_fields() -> None:
    """``ab`` greeting ``c`` is not ``a`` greeting ``bc``."""
    keyring = Keyring("secret")
    assert keyring.greet("ab", "c", NONCE) != keyring.greet("a", "bc", NONCE)


@given(st.lists(st.integers(1, 3 * WINDOW), max_size=60))
def test_no_number_is_accepted_twice(numbers: list[int]) -> None:
    """In any order; and a new number is accepted unless it is far below the highest one."""
    table, session = opened()
    taken: set[int] = set()
    for number in numbers:
        verdict = table.check(session.seal(number, REQUEST), REQUEST)
        if number in taken or number <= max(taken, default=0) - WINDOW:
            assert verdict is Verdict.SEEN
        else:
            assert verdict is Verdict.ACCEPTED
            taken.add(number)


def test_recorded_greetings_push_out_no_session_in_use() -> None:
    """Sessions that no request has used are bounded, and apart from the others."""
    table, session = opened()
    assert table.check(session.seal(1, REQUEST), REQUEST) is Verdict.ACCEPTED
    keyring = Keyring("secret")
    for number in range(5 * MAX_FRESH):
        table.open(greeting(keyring), number.to_bytes(NONCE_BYTES))

    assert len(table._fresh) == MAX_FRESH
    assert table.check(session.seal(2, REQUEST), REQUEST) is Verdict.ACCEPTED


@pytest.mark.parametrize(
    "proof", [b"", b"a", b"a b c", b"s 1", b"s -1 c", b"s 1 c d", b"s \xb2 c", b"s " + b"9" * 30 + b" c"]
)
def test_malformed_proofs_are_refused(proof: bytes) -> None:
    """Whatever a program sends, the table answers with a verdict."""
    table, session = opened()
    proof = proof.replace(b"s ", session.name + b" ")

    assert table.check(proof, REQUEST) in {Verdict.FORGED, Verdict.UNKNOWN}


def test_an_unknown_session_is_told_apart() -> None:
    """The receiver has restarted: the sender opens another session."""
    table, _ = opened()
    other = NodeSession(b"0" * 32, b"key")
    assert table.check(other.seal(1, REQUEST), REQUEST) is Verdict.UNKNOWN
