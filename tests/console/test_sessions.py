"""Sessions of the console: their cookies, change keys and codes."""

from __future__ import annotations

import itertools

import pytest

from tangram.console.sessions import CODE_SECONDS, MAX_CODES, MAX_ENDED, SESSION_SECONDS, Sessions


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make(clock: Clock, token: str = "the token") -> Sessions:
    ids = itertools.count()
    return Sessions(token, clock=clock, new_id=lambda: f"id{next(ids)}")


def test_a_session_reads_and_changes_until_it_expires(clock: Clock) -> None:
    """The cookie is good for reading, and with its key for changes, for as long as it was given."""
    sessions = make(clock)
    opened = sessions.open()

    assert sessions.is_valid(opened.cookie)
    assert sessions.may_change(opened.cookie, opened.change_key)
    clock.now += SESSION_SECONDS + 1
    assert not sessions.is_valid(opened.cookie)
    assert not sessions.may_change(opened.cookie, opened.change_key)


def test_a_stolen_cookie_changes_nothing(clock: Clock) -> None:
    """Without its own change key a session only reads; the key of another session is no help."""
    sessions = make(clock)
    stolen, own = sessions.open(), sessions.open()

    assert sessions.is_valid(stolen.cookie)
    for key in ("", "x", "\udcff", stolen.cookie, stolen.cookie.rpartition(".")[2], own.change_key):
        assert not sessions.may_change(stolen.cookie, key)


@pytest.mark.parametrize(
    "cookie", ["", ".", "a.b.c", "9999999999.id0.", "9999999999.id0.ff", "ü.ü.ü", "\udcff"]
)
def test_a_made_up_cookie_is_no_session(clock: Clock, cookie: str) -> None:
    """Only cookies that were signed here are valid."""
    assert not make(clock).is_valid(cookie)


def test_the_expiry_in_a_cookie_cannot_be_changed(clock: Clock) -> None:
    """The signature covers it."""
    sessions = make(clock)
    expires, id_, signature = sessions.open().cookie.split(".")

    assert not sessions.is_valid(f"{int(expires) + 1}.{id_}.{signature}")


def test_a_session_outlives_the_server_and_not_the_token(clock: Clock) -> None:
    """A server with the same token knows it; another token ends it."""
    opened = make(clock).open()

    assert make(clock).is_valid(opened.cookie)
    assert not make(clock, "another token").is_valid(opened.cookie)
    sessions = make(clock)
    sessions.renew("another token")
    assert not sessions.is_valid(opened.cookie)


def test_servers_with_different_tokens_have_different_cookies(clock: Clock) -> None:
    """Browsers send a cookie to every port of a host, so that two servers would overwrite each other's."""
    assert make(clock).cookie_name != make(clock, "another token").cookie_name


def test_a_logout_ends_one_session(clock: Clock) -> None:
    """The others go on; the memory of ended ones is bounded."""
    sessions = make(clock)
    one, other = sessions.open(), sessions.open()
    sessions.end(one.cookie)

    assert not sessions.is_valid(one.cookie)
    assert sessions.is_valid(other.cookie)
    for _ in range(MAX_ENDED + 5):
        sessions.end(sessions.open().cookie)
    assert len(sessions._ended) == MAX_ENDED


def test_a_code_opens_one_session_within_a_minute(clock: Clock) -> None:
    """It is used up by its use, and by time; only the newest ones wait."""
    sessions = make(clock)
    code, late = sessions.new_code(), sessions.new_code()

    assert sessions.redeem(code)
    assert not sessions.redeem(code)
    clock.now += CODE_SECONDS
    assert not sessions.redeem(late)
    codes = [sessions.new_code() for _ in range(MAX_CODES + 1)]
    assert [sessions.redeem(one) for one in codes] == [False] + [True] * MAX_CODES


def test_without_a_token_there_are_no_sessions(clock: Clock) -> None:
    """An empty token opens nothing, and nothing is valid."""
    sessions = make(clock, "")
    with pytest.raises(ValueError, match="no sessions"):
        sessions.open()

    body = f"{int(clock.now) + 5}.id"
    assert not sessions.is_valid(f"{body}.{sessions._sign('read', body)}")
