from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tangram.config.model import Config, ServerConfig
from tangram.web.addresses import Addresses
from tangram.web.forwarded import Hop, read_forwarded


def addresses(*trusted: str) -> Addresses:
    return Addresses.of(Config(server=ServerConfig(hosts=("maps.example",), forwarded_allow_ips=trusted)))


def scope(*lines: tuple[str, str], client: str = "127.0.0.1", scheme: str = "http") -> dict[str, Any]:
    headers = [(name.encode(), value.encode("latin-1")) for name, value in lines]
    return {"client": (client, 5), "scheme": scheme, "headers": [(b"host", b"localhost"), *headers]}


@pytest.mark.parametrize(
    ("lines", "hops"),
    [
        (["for=192.0.2.60;proto=https;host=maps.example"], [Hop("192.0.2.60", "https", "maps.example")]),
        (["For=192.0.2.60; Proto=HTTPS ;by=203.0.113.43"], [Hop("192.0.2.60", "https")]),
        (['for="192.0.2.60:4711";host="maps.example:8443"'], [Hop("192.0.2.60", "", "maps.example:8443")]),
        (['for="[2001:db8:0::17]:4711"'], [Hop("2001:db8::17")]),
        (['for="[2001:db8::17]:_port"'], [Hop("2001:db8::17")]),
        ([r'for="192\.0.2.60";x="a,b;c"'], [Hop("192.0.2.60")]),
        (["for=unknown;proto=https"], [Hop("", "https")]),
        (["for=_hidden, for=192.0.2.1"], [Hop("192.0.2.1"), Hop()]),
        (["for=192.0.2.2 , for=192.0.2.1", "for=192.0.2.0"], [Hop(f"192.0.2.{n}") for n in range(3)]),
        (["proto=https"], [Hop("", "https")]),
        ([", ,;,for=192.0.2.1;;"], [Hop("192.0.2.1"), Hop()]),
        # A malformed element is unknown and ends the list; so does a parameter that occurs twice.
        (["for=192.0.2.2, for=2001:db8::1, for=192.0.2.1"], [Hop("192.0.2.1"), Hop()]),
        (["for=192.0.2.1;for=192.0.2.2"], [Hop()]),
        (["for=192.0.2.1 proto=https"], [Hop()]),
        (['for="192.0.2.1'], [Hop()]),
        (['for="a, for=192.0.2.1'], [Hop("192.0.2.1"), Hop()]),
        (['for=192.0.2.2", for=192.0.2.1'], [Hop("192.0.2.1"), Hop()]),
        (['for="999.0.0.1"'], [Hop()]),
        (["", ""], []),
    ],
)
def test_forwarded_elements_are_parsed(lines: list[str], hops: list[Hop]) -> None:
    """Pairs, quoted strings, brackets and ports as RFC 7239 has them, the nearest proxy first."""
    assert list(read_forwarded(lines)) == hops


def test_forwarded_sets_scope_and_channel_url() -> None:
    """Scope and manifest follow the Forwarded header of a trusted proxy."""
    told = scope(("forwarded", "for=198.51.100.7;proto=https;host=maps.example"))
    seen = addresses("127.0.0.1").forwarded(told)

    assert (seen["client"], seen["scheme"]) == (("198.51.100.7", 0), "https")
    assert addresses("127.0.0.1").channel_url(seen) == "https://maps.example"
    assert addresses("10.0.0.1").forwarded(told) is told
    assert addresses("127.0.0.1").forwarded({**told, "scheme": "ws"})["scheme"] == "wss"


def test_the_nearest_untrusted_hop_is_the_client() -> None:
    """The client is the nearest address that is no trusted proxy.

    Scheme and host come from the same element.
    """
    line = "for=203.0.113.9;proto=http, for=198.51.100.7;proto=https, for=10.0.0.2;proto=http"

    seen = addresses("127.0.0.1", "10.0.0.0/8").forwarded(scope(("forwarded", line)))
    assert (seen["client"], seen["scheme"]) == (("198.51.100.7", 0), "https")
    assert addresses("*").forwarded(scope(("forwarded", line)))["client"] == ("10.0.0.2", 0)


@pytest.mark.parametrize("line", ["for=unknown", "for=_secret", 'for="', "x", "for=192.0.2.1,for=_a", ""])
def test_an_element_without_address_keeps_the_proxys(line: str) -> None:
    """An element without an address leaves the proxy's address in the scope.

    It shares the proxy's rate limit.
    """
    ours, told = addresses("127.0.0.1"), scope(("forwarded", line))

    assert ours.forwarded(told)["client"] == ("127.0.0.1", 5)


@pytest.mark.parametrize("name", ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-real-ip"])
def test_forwarded_is_ignored_beside_x_headers(name: str) -> None:
    """A proxy that writes X- headers hands a Forwarded on as the client wrote it."""
    told = scope((name, "198.51.100.7"), ("forwarded", "for=127.0.0.1;proto=https;host=maps.example"))
    ours = addresses("127.0.0.1")
    seen = ours.forwarded(told)

    assert seen["client"][0] == ("198.51.100.7" if name == "x-forwarded-for" else "127.0.0.1")
    assert seen["scheme"] == "http"
    assert "maps.example" not in ours.channel_url(told)


names = st.sampled_from([b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"])
pieces = st.sampled_from(["for=", "proto=https", "host=", '"', "\\", ",", ";", "[::1]", "10.0.0.1", " ", "x"])


@given(
    st.lists(
        st.tuples(names, st.binary(max_size=40) | st.lists(pieces).map(lambda p: "".join(p).encode())),
        max_size=3,
    )
)
@example([(b"forwarded", b'for="[::1%\xff]"')])
def test_no_header_text_raises(headers: list[tuple[bytes, bytes]]) -> None:
    """No header text raises; an address that is read is a valid IP address."""
    told: dict[str, Any] = {"client": ("127.0.0.1", 5), "scheme": "http", "headers": headers}
    for ours in (addresses("127.0.0.1", "10.0.0.0/8"), addresses("*")):
        seen = ours.forwarded(told)
        assert seen["scheme"] in {"http", "https"}
        assert ours.channel_url(seen).startswith(("http://", "https://"))


@given(st.binary(max_size=40).map(lambda b: b.decode("latin-1")) | st.lists(pieces).map("".join))
@example('for="')
@example("for=10.0.0.1\\")
def test_text_before_the_nearest_element_does_not_change_it(garbage: str) -> None:
    """Text in front of the proxy's own element does not change how that element is read."""
    for own in ("for=198.51.100.7;proto=https", 'for="198.51.100.7:99";proto="https"'):
        told = scope(("forwarded", f"{garbage}, {own}"))
        seen = addresses("127.0.0.1").forwarded(told)
        assert (seen["client"], seen["scheme"]) == (("198.51.100.7", 0), "https")
