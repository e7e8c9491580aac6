"""Ids that need the proof that came with them."""

from __future__ import annotations

import pytest

from tangram.channels.ids import MAX_CHOSEN, IdMode, IdProofs
from tests.channels.fakes import counting_ids

SECRET = "the secret"


def proofs(mode: IdMode, secret: str = SECRET) -> IdProofs:
    return IdProofs(secret, mode, counting_ids("identity"))


@pytest.mark.parametrize(
    ("mode", "keeps_proof", "bound"),
    [("open", True, False), ("auto", False, False), ("auto", True, True), ("proven", False, True)],
)
def test_a_bound_id_needs_its_proof(mode: IdMode, keeps_proof: bool, bound: bool) -> None:
    """The mode and the client decide whether a new id is bound."""
    ids = proofs(mode)
    id_ = ids.make(keeps_proof=keeps_proof)

    assert ids.may_use(id_, [ids.proof(id_)])
    assert ids.may_use(id_, ["x", ids.proof(id_)])
    assert ids.may_use(id_, []) is not bound
    assert ids.may_use(id_, [ids.proof("other"), "é"]) is not bound


def test_a_bound_id_stays_bound_after_a_restart() -> None:
    """Another object with the same secret knows it; one with another secret does not."""
    ids = proofs("auto")
    id_ = ids.make(keeps_proof=True)

    assert not proofs("auto").may_use(id_, [])
    assert proofs("auto").may_use(id_, [ids.proof(id_)])
    assert proofs("auto", "another secret").may_use(id_, [])


def test_chosen_ids_are_bound_once_they_are_used() -> None:
    """With ``proven`` the first client has the id, in a bounded memory."""
    ids = proofs("proven")
    assert ids.may_use("alice", [])
    ids.note("alice")
    assert not ids.may_use("alice", [])
    assert ids.may_use("alice", [ids.proof("alice")])
    for number in range(MAX_CHOSEN + 1000):
        ids.note(f"n{number}")
    assert ids.may_use("alice", [])

    open_ids = proofs("auto")
    open_ids.note("alice")
    assert open_ids.may_use("alice", [])


def test_open_ids_do_not_look_bound() -> None:
    """Of many ids that are not bound none needs a proof later."""
    ids = proofs("auto")

    assert all(ids.may_use(ids.make(keeps_proof=False), []) for _ in range(5000))
