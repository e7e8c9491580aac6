from __future__ import annotations

from tangram.channels import disconnects
from tangram.channels.disconnects import Disconnect, Refusal

ALL = [value for value in vars(disconnects).values() if isinstance(value, Disconnect)]
REFUSALS = [value for value in vars(disconnects).values() if isinstance(value, Refusal)]


def test_the_server_never_closes_with_1000() -> None:
    """phoenix.js before 1.8.10 does not come back after 1000."""
    assert len(ALL) >= 8
    assert all(disconnect.code != 1000 for disconnect in ALL)


def test_codes_may_be_sent_and_reasons_fit() -> None:
    """RFC 6455 allows the codes, and the reasons fit into a control frame."""
    for disconnect in ALL:
        assert disconnect.code in {1001, 1003, 1007, 1008, 1009, 1011, 1012, 1013}
        assert len(disconnect.reason.encode()) <= 123


def test_each_refusal_has_its_own_reason() -> None:
    """No two refusals say the same."""
    assert len({refusal.reason for refusal in REFUSALS}) == len(REFUSALS)
