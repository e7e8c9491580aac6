from __future__ import annotations

import json
import time
import warnings
from base64 import urlsafe_b64encode
from typing import Any

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tangram.channels.disconnects import TOKEN_EXPIRED, UNAUTHORIZED, Refusal
from tangram.channels.tokens import Claims, mint, verify

SECRET = "a secret that is long enough for the referee not to warn"
NOW = 1_700_000_000
GOOD = {"id": "alice", "channel": "obs", "exp": NOW + 10}
LATER = int(time.time()) + 3600
"""In the future of the real clock, which PyJWT's own checks read."""


def by_referee(claims: dict[str, Any], secret: str = SECRET, algorithm: str | None = "HS256") -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return jwt.encode(claims, secret if algorithm else None, algorithm=algorithm or "none")


def test_pyjwt_accepts_minted_tokens() -> None:
    """PyJWT accepts the token, with the header and the claims that clients know."""
    token = mint(Claims("alice", "obs", NOW), SECRET)

    assert jwt.get_unverified_header(token) == {"typ": "JWT", "alg": "HS256"}
    assert jwt.decode(token, SECRET, ["HS256"], options={"verify_exp": False}) == {
        "id": "alice",
        "channel": "obs",
        "exp": NOW,
    }


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=20), st.text(max_size=20), st.text(min_size=1, max_size=20))
def test_minted_tokens_are_accepted(id_: str, channel: str, secret: str) -> None:
    """Any id and channel survive under any secret, and under no other secret."""
    claims = Claims(id_, channel, NOW)
    token = mint(claims, secret)

    assert verify(token, secret, NOW) == claims
    assert verify(token, secret + "x", NOW) == UNAUTHORIZED


@pytest.mark.parametrize(
    ("claims", "verdict"),
    [
        (GOOD, Claims("alice", "obs", NOW + 10)),
        (GOOD | {"exp": NOW - 30}, Claims("alice", "obs", NOW - 30)),
        (GOOD | {"exp": NOW - 70}, TOKEN_EXPIRED),
        (GOOD | {"extra": [1]}, Claims("alice", "obs", NOW + 10)),
        (GOOD | {"nbf": LATER}, Claims("alice", "obs", NOW + 10)),
        (GOOD | {"iat": LATER}, Claims("alice", "obs", NOW + 10)),
        (GOOD | {"aud": "x"}, UNAUTHORIZED),
        (GOOD | {"exp": NOW + 0.5}, UNAUTHORIZED),
        (GOOD | {"exp": "1"}, UNAUTHORIZED),
        (GOOD | {"exp": True}, UNAUTHORIZED),
        (GOOD | {"id": 5}, UNAUTHORIZED),
        ({"id": "alice", "channel": "obs"}, UNAUTHORIZED),
        ({"id": "alice", "exp": NOW + 10}, UNAUTHORIZED),
        ({"channel": "obs", "exp": NOW + 10}, UNAUTHORIZED),
    ],
)
def test_claims_are_checked_as_clients_expect(claims: dict[str, Any], verdict: Claims | Refusal) -> None:
    """Sixty seconds of leeway, integer exp, private claims and nbf ignored, aud refused."""
    assert verify(by_referee(claims), SECRET, NOW) == verdict


def test_a_known_token_is_checked_as_a_new_one() -> None:
    """Its signature is remembered; its time is not, and neither is it known under another secret."""
    token = mint(Claims("bob", "obs", NOW + 10), SECRET)
    assert verify(token, SECRET, NOW) == verify(token, SECRET, NOW) == Claims("bob", "obs", NOW + 10)

    assert verify(token, SECRET, NOW + 1000) is TOKEN_EXPIRED
    assert verify(token, SECRET + "2", NOW) is UNAUTHORIZED
    assert verify(token[:-4] + "AAAA", SECRET, NOW) is UNAUTHORIZED


@pytest.mark.parametrize("claim", ["nbf", "iat"])
def test_pyjwt_would_refuse_tokens_that_are_not_valid_yet(claim: str) -> None:
    """PyJWT's full decode refuses such a token, so that accepting it is our decision."""
    token = by_referee(GOOD | {"exp": LATER + 3600, claim: LATER})

    with pytest.raises(jwt.ImmatureSignatureError):
        jwt.decode(token, SECRET, ["HS256"])
    assert verify(token, SECRET, NOW) == Claims("alice", "obs", LATER + 3600)


@pytest.mark.parametrize("secret", ["wrong key that is long enough not to be warned of", "x"])
def test_another_key_is_refused(secret: str) -> None:
    """A token with another signature is refused."""
    assert verify(by_referee(GOOD, secret), SECRET, NOW) == UNAUTHORIZED


@pytest.mark.parametrize("algorithm", [None, "HS384", "HS512"])
def test_other_algorithms_are_refused(algorithm: str | None) -> None:
    """Only HS256 counts: no unsigned tokens, and no other hash with the right key."""
    assert verify(by_referee(GOOD, algorithm=algorithm), SECRET, NOW) == UNAUTHORIZED


def test_a_short_secret_works_without_a_warning() -> None:
    """The operator may configure a secret of six letters."""
    assert verify(mint(Claims("a", "b", NOW), "secret"), "secret", NOW) == Claims("a", "b", NOW)


def test_a_header_with_another_algorithm_is_refused() -> None:
    """A valid signature under another algorithm, or with critical extensions, is refused."""
    import hashlib
    import hmac

    for header in ({"alg": "none"}, {"alg": "HS256", "crit": ["b64"]}, {}):
        signed = b".".join(
            urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, GOOD)
        )
        signature = urlsafe_b64encode(hmac.new(SECRET.encode(), signed, hashlib.sha256).digest()).rstrip(b"=")
        assert verify((signed + b"." + signature).decode(), SECRET, NOW) == UNAUTHORIZED


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=200) | st.from_regex(r"\A[\w-]{0,30}\.[\w-]{0,30}\.[\w-]{0,30}\Z"))
def test_garbage_is_refused(token: str) -> None:
    """No string raises."""
    assert verify(token, SECRET, NOW) == UNAUTHORIZED


def test_every_changed_character_breaks_a_token() -> None:
    """The signature covers header and claims, and is compared whole."""
    token = mint(Claims("alice", "obs", NOW), SECRET)
    for index in range(len(token) - 1):
        changed = "A" if token[index] != "A" else "B"
        assert verify(token[:index] + changed + token[index + 1 :], SECRET, NOW) == UNAUTHORIZED
    for tail in ("!", "!!!!", "\n", "===="):
        assert verify(token[:-4] + tail + token[-4:], SECRET, NOW) == UNAUTHORIZED
