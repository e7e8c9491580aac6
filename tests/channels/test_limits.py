from __future__ import annotations

import pytest

from tangram.channels.limits import MAX_KEYS, Limiter, client_key


def test_a_burst_then_the_rate() -> None:
    """A full bucket gives its burst at once, and then as many as the rate fills in."""
    limiter = Limiter(rate=2, burst=3)

    assert [limiter.take("a", 0.0) for _ in range(4)] == [True, True, True, False]
    assert limiter.take("a", 0.4) is False
    assert limiter.take("a", 0.5) is True
    assert limiter.take("a", 0.5) is False
    assert [limiter.take("a", 100.0) for _ in range(4)] == [True, True, True, False]


def test_each_key_has_its_own_bucket() -> None:
    """The burst of one address does not use up that of another."""
    limiter = Limiter(rate=1, burst=1)

    assert limiter.take("a", 0.0)
    assert limiter.take("b", 0.0)
    assert not limiter.take("a", 0.0)


def test_no_key_and_no_rate_mean_no_limit() -> None:
    """A key of None and a rate of 0 are not limited."""
    limiter = Limiter(rate=1, burst=1)

    assert all(limiter.take(None, 0.0) for _ in range(10))
    assert all(Limiter(rate=0, burst=1).take("a", 0.0) for _ in range(10))


def test_a_clock_step_back_does_not_fill_a_bucket() -> None:
    """A clock that steps back neither fills nor empties a bucket."""
    limiter = Limiter(rate=1, burst=1)

    assert limiter.take("a", 100.0)
    assert not limiter.take("a", 50.0)


def test_memory_is_bounded() -> None:
    """A million addresses are not remembered."""
    limiter = Limiter(rate=1, burst=1)
    for number in range(MAX_KEYS + 100):
        limiter.take(str(number), 0.0)

    assert len(limiter._buckets) == MAX_KEYS


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.9.9.9", "127.9.9.9"),
        ("::1", "::/64"),
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("a-name", "a-name"),
        ("", None),
    ],
)
def test_the_bucket_of_an_address(address: str, key: str | None) -> None:
    """No address is exempt, and an IPv6 address counts for its /64 network."""
    assert client_key(address) == key
