from __future__ import annotations

from typing import Any

import pytest

from tangram.config.model import ChannelConfig, Config, ServerConfig
from tangram.web.addresses import Addresses, is_loopback


def scope(client: str = "127.0.0.1", scheme: str = "http", **headers: str) -> dict[str, Any]:
    lines = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"client": (client, 5), "scheme": scheme, "headers": lines}


def addresses(channel: ChannelConfig | None = None, **server: Any) -> Addresses:
    return Addresses.of(Config(server=ServerConfig(**server), channel=channel or ChannelConfig()))


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("LOCALHOST.", True),
        ("app.localhost", True),
        ("127.8.9.1", True),
        ("[::1]", True),
        ("::ffff:127.0.0.1", True),
        ("10.0.0.1", False),
        ("localhost.example", False),
        ("", False),
    ],
)
def test_what_loopback_is(host: str, expected: bool) -> None:
    """Names and addresses of this machine, and nothing that only looks like one."""
    assert is_loopback(host) is expected


def test_the_channel_is_where_the_browser_came_in() -> None:
    """Scheme, host and port are those of the request, if the host is ours or loopback."""
    ours = addresses(host="0.0.0.0", hosts=("maps.example",))

    assert ours.channel_url(scope(host="localhost:8080")) == "http://localhost:8080"
    assert ours.channel_url(scope(scheme="https", host="maps.example")) == "https://maps.example"
    assert ours.channel_url(scope(host="[::1]:2346")) == "http://[::1]:2346"


@pytest.mark.parametrize(
    "host", ["attacker.example", "a@maps.example", "maps.example/path", "x y", ":::", ""]
)
def test_a_foreign_host_is_not_told(host: str) -> None:
    """What a client claims to be our name is not repeated to it, or to a cache."""
    assert addresses(hosts=("maps.example",)).channel_url(scope(host=host)) == "http://127.0.0.1:2346"


@pytest.mark.parametrize(
    ("server", "host", "told"),
    [
        ("192.168.1.5", "192.168.1.5:2346", "http://192.168.1.5:2346"),
        ("::ffff:192.168.1.5", "192.168.1.5:2346", "http://192.168.1.5:2346"),
        ("2001:db8::5", "[2001:db8:0::5]:2346", "http://[2001:db8:0::5]:2346"),
        ("192.168.1.5", "192.168.1.6:2346", "http://127.0.0.1:2346"),
        ("192.168.1.5", "attacker.example", "http://127.0.0.1:2346"),
        ("attacker.example", "attacker.example", "http://127.0.0.1:2346"),
        (None, "192.168.1.5:2346", "http://127.0.0.1:2346"),
    ],
)
def test_the_address_of_the_socket_is_ours(server: str | None, host: str, told: str) -> None:
    """Behind a wildcard a browser is told the address that it came in by, when it calls us by that address;
    a name that was made to point there is not."""
    came = {**scope("192.168.1.9", host=host), "server": (server, 2346) if server else None}

    assert addresses(host="0.0.0.0").channel_url(came) == told


def test_two_hosts_are_none() -> None:
    """A doubled Host header says nothing."""
    doubled = scope(host="localhost:1")
    doubled["headers"].append((b"host", b"localhost:2"))

    assert addresses().channel_url(doubled) == "http://127.0.0.1:2346"


def test_public_url_is_told_as_it_stands() -> None:
    """[channel] public_url wins over everything."""
    ours = addresses(ChannelConfig(public_url="https://host.example/rt"))

    assert ours.channel_url(scope(host="localhost")) == "https://host.example/rt"


def test_a_second_listener_has_its_own_port() -> None:
    """[channel] port is the port in the URL, under the host that the browser used."""
    assert (
        addresses(ChannelConfig(port=2347)).channel_url(scope(host="localhost:2346"))
        == "http://localhost:2347"
    )


def test_forwarded_addresses_are_believed_of_trusted_proxies_alone() -> None:
    """X-Forwarded-Proto and -Host count when the peer is in forwarded_allow_ips."""
    ours = addresses(hosts=("maps.example",), forwarded_allow_ips=("10.0.0.0/8",))
    claims = {"host": "localhost", "x_forwarded_proto": "https", "x_forwarded_host": "maps.example"}

    assert ours.channel_url(scope("10.1.2.3", **claims)) == "https://maps.example"
    assert ours.channel_url(scope("192.0.2.1", **claims)) == "http://localhost"


def test_who_is_local() -> None:
    """The nearest address that is no proxy of ours decides."""
    ours = addresses(forwarded_allow_ips=("127.0.0.1",))

    assert ours.is_local(scope(host="localhost"))
    assert ours.is_local(scope(host="localhost", x_forwarded_for="127.0.0.1"))
    assert not ours.is_local(scope(host="localhost", x_forwarded_for="127.0.0.1, 198.51.100.7"))
    assert not ours.is_local(scope("198.51.100.7", host="localhost"))
    assert not ours.is_local(scope(host="localhost", x_forwarded_for="198.51.100.7, 127.0.0.1"))
    assert not ours.is_local({"client": None, "headers": []})


def test_an_untrusted_proxy_on_this_machine_is_a_stranger() -> None:
    """With forwarding headers from a loopback peer that is not trusted, nothing is known: not local."""
    ours = addresses(forwarded_allow_ips=("10.0.0.1",))

    assert not ours.is_local(scope(host="localhost", x_forwarded_for="127.0.0.1"))


def test_a_scope_is_as_the_trusted_proxy_tells() -> None:
    """The address, and the scheme even where no address is told, come from a trusted proxy; all else leaves
    the scope as it is."""
    ours = addresses(forwarded_allow_ips=("127.0.0.1",))
    plain = scope(host="localhost")

    assert ours.forwarded(plain) is plain
    assert ours.forwarded(scope(x_forwarded_proto="https"))["scheme"] == "https"
    assert ours.forwarded(scope(x_forwarded_for="198.51.100.7"))["client"] == ("198.51.100.7", 0)
    stranger = scope(x_forwarded_for="198.51.100.7", client="192.0.2.1")
    assert ours.forwarded(stranger) is stranger
