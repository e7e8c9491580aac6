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
        # What is malformed says nothing, and is the end; so is a name that is given twice.
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
def test_what_proxies_say(lines: list[str], hops: list[Hop]) -> None:
    """Pairs, quoted strings, brackets and ports as RFC 7239 has them, the nearest proxy first."""
    assert list(read_forwarded(lines)) == hops


def test_a_scope_is_as_the_proxy_tells() -> None:
    """Address and scheme of a scope, and the URL in the manifest, come from a trusted proxy's Forwarded."""
    told = scope(("forwarded", "for=198.51.100.7;proto=https;host=maps.example"))
    seen = addresses("127.0.0.1").forwarded(told)

    assert (seen["client"], seen["scheme"]) == (("198.51.100.7", 0), "https")
    assert addresses("127.0.0.1").channel_url(seen) == "https://maps.example"
    assert addresses("10.0.0.1").forwarded(told) is told
    assert addresses("127.0.0.1").forwarded({**told, "scheme": "ws"})["scheme"] == "wss"


def test_the_last_trusted_hop_tells() -> None:
    """Elements of our own proxies are passed over; the first address that none of them has is the browser's,
    and scheme and host are those of the same element."""
    line = "for=203.0.113.9;proto=http, for=198.51.100.7;proto=https, for=10.0.0.2;proto=http"

    seen = addresses("127.0.0.1", "10.0.0.0/8").forwarded(scope(("forwarded", line)))
    assert (seen["client"], seen["scheme"]) == (("198.51.100.7", 0), "https")
    assert addresses("*").forwarded(scope(("forwarded", line)))["client"] == ("10.0.0.2", 0)


@pytest.mark.parametrize("line", ["for=unknown", "for=_secret", 'for="', "x", "for=192.0.2.1,for=_a", ""])
def test_where_no_address_is_known_the_proxys_stays(line: str) -> None:
    """As with an X-Forwarded-For that is no address; and nothing that came through a proxy like that is
    local."""
    ours, told = addresses("127.0.0.1"), scope(("forwarded", line))

    assert ours.forwarded(told)["client"] == ("127.0.0.1", 5)
    assert not ours.is_local(told)


def test_who_is_local() -> None:
    """A request that a trusted proxy had from this machine is, one from elsewhere is not."""
    ours = addresses("127.0.0.1")

    assert ours.is_local(scope(("forwarded", 'for="[::1]:99"')))
    assert not ours.is_local(scope(("forwarded", "for=127.0.0.1, for=198.51.100.7")))


@pytest.mark.parametrize("name", ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-real-ip"])
def test_beside_the_other_headers_it_does_not_count(name: str) -> None:
    """A proxy that writes X- headers hands a Forwarded on as the client wrote it."""
    told = scope((name, "198.51.100.7"), ("forwarded", "for=127.0.0.1;proto=https;host=maps.example"))
    ours = addresses("127.0.0.1")
    seen = ours.forwarded(told)

    assert seen["client"][0] == ("198.51.100.7" if name == "x-forwarded-for" else "127.0.0.1")
    assert seen["scheme"] == "http"
    assert "maps.example" not in ours.channel_url(told)
    assert not ours.is_local(told)


names = st.sampled_from([b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"])
pieces = st.sampled_from(["for=", "proto=https", "host=", '"', "\\", ",", ";", "[::1]", "10.0.0.1", " ", "x"])


@given(
    st.lists(
        st.tuples(names, st.binary(max_size=40) | st.lists(pieces).map(lambda p: "".join(p).encode())),
        max_size=3,
    )
)
@example([(b"forwarded", b'for="[::1%\xff]"')])
def test_no_bytes_raise(headers: list[tuple[bytes, bytes]]) -> None:
    """Whatever stands in the headers, they are read or ignored; an address that is told is one."""
    told: dict[str, Any] = {"client": ("127.0.0.1", 5), "scheme": "http", "headers": headers}
    for ours in (addresses("127.0.0.1", "10.0.0.0/8"), addresses("*")):
        seen = ours.forwarded(told)
        assert seen["scheme"] in {"http", "https"}
        assert ours.channel_url(seen).startswith(("http://", "https://"))
        ours.is_local(seen)


@given(st.binary(max_size=40).map(lambda b: b.decode("latin-1")) | st.lists(pieces).map("".join))
@example('for="')
@example("for=10.0.0.1\\")
def test_the_nearest_proxy_is_heard_whatever_stands_before_it(garbage: str) -> None:
    """What a client sends in front takes nothing from the element that the proxy appends."""
    for own in ("for=198.51.100.7;proto=https", 'for="198.51.100.7:99";proto="https"'):
        told = scope(("forwarded", f"{garbage}, {own}"))
        seen = addresses("127.0.0.1").forwarded(told)
        assert (seen["client"], seen["scheme"]) == (("198.51.100.7", 0), "https")
