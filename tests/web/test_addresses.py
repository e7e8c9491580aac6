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
def test_loopback_names_and_addresses_are_recognised(host: str, expected: bool) -> None:
    """Names and addresses of this machine, and nothing that only looks like one."""
    assert is_loopback(host) is expected


def test_the_channel_url_follows_the_host_header() -> None:
    """Scheme, host and port are those of the request, if the host is ours or loopback."""
    ours = addresses(host="0.0.0.0", hosts=("maps.example",))

    assert ours.channel_url(scope(host="localhost:8080")) == "http://localhost:8080"
    assert ours.channel_url(scope(scheme="https", host="maps.example")) == "https://maps.example"
    assert ours.channel_url(scope(host="[::1]:2346")) == "http://[::1]:2346"


@pytest.mark.parametrize(
    "host", ["attacker.example", "a@maps.example", "maps.example/path", "x y", ":::", ""]
)
def test_a_foreign_host_is_not_in_the_channel_url(host: str) -> None:
    """A host name that the client invented is not repeated in the manifest."""
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
def test_the_address_of_the_socket_is_in_the_channel_url(server: str | None, host: str, told: str) -> None:
    """The address of the socket is told where the server listens on all addresses.

    The client must have used that address itself as ``Host``. A name that merely points there is not told.
    """
    came = {**scope("192.168.1.9", host=host), "server": (server, 2346) if server else None}

    assert addresses(host="0.0.0.0").channel_url(came) == told


def test_two_host_headers_count_as_none() -> None:
    """A doubled Host header says nothing."""
    doubled = scope(host="localhost:1")
    doubled["headers"].append((b"host", b"localhost:2"))

    assert addresses().channel_url(doubled) == "http://127.0.0.1:2346"


def test_public_url_is_used_unchanged() -> None:
    """[channel] public_url wins over everything."""
    ours = addresses(ChannelConfig(public_url="https://host.example/rt"))

    assert ours.channel_url(scope(host="localhost")) == "https://host.example/rt"


def test_channel_port_replaces_the_port_of_the_host_header() -> None:
    """[channel] port is the port in the URL, under the host that the browser used."""
    assert (
        addresses(ChannelConfig(port=2347)).channel_url(scope(host="localhost:2346"))
        == "http://localhost:2347"
    )


def test_only_trusted_proxies_set_the_client_address() -> None:
    """X-Forwarded-Proto and -Host count when the peer is in forwarded_allow_ips."""
    ours = addresses(hosts=("maps.example",), forwarded_allow_ips=("10.0.0.0/8",))
    claims = {"host": "localhost", "x_forwarded_proto": "https", "x_forwarded_host": "maps.example"}

    assert ours.channel_url(scope("10.1.2.3", **claims)) == "https://maps.example"
    assert ours.channel_url(scope("192.0.2.1", **claims)) == "http://localhost"


@pytest.mark.parametrize(
    ("chain", "real", "client"),
    [
        ("127.0.0.1", "198.51.100.7", "127.0.0.1"),
        ("203.0.113.9", "198.51.100.7", "127.0.0.1"),
        ("203.0.113.9, 198.51.100.7", "198.51.100.7", "198.51.100.7"),
        ("198.51.100.7", "203.0.113.9", "127.0.0.1"),
        ("198.51.100.7, 10.0.0.9", "10.0.0.9", "198.51.100.7"),
        ("198.51.100.7", "", "198.51.100.7"),
    ],
)
def test_headers_that_contradict_each_other_name_no_client(chain: str, real: str, client: str) -> None:
    """A proxy that sets X-Real-IP alone passes X-Forwarded-For on as the client wrote it, or the reverse.

    The request then counts for the proxy. The second hop may be a trusted proxy, which is no contradiction.
    """
    ours = addresses(forwarded_allow_ips=("127.0.0.1", "10.0.0.0/8"))
    headers = {"host": "localhost", "x_forwarded_for": chain, **({"x_real_ip": real} if real else {})}

    assert ours.forwarded(scope(**headers))["client"][0] == client


@pytest.mark.parametrize(
    ("server", "host", "socket_address", "expected"),
    [
        ("127.0.0.1", "localhost:2346", "127.0.0.1", True),
        ("127.0.0.1", "app.localhost", "127.0.0.1", True),
        ("127.0.0.1", "[::1]:2346", "127.0.0.1", True),
        ("127.0.0.1", "maps.example:2346", "127.0.0.1", True),
        ("127.0.0.1", "MAPS.example.", "127.0.0.1", True),
        ("127.0.0.1", "evil.example:2346", "127.0.0.1", False),
        ("127.0.0.1", "maps.example.evil.example", "127.0.0.1", False),
        ("127.0.0.1", "192.0.2.7", "127.0.0.1", False),
        ("127.0.0.1", "a@localhost", "127.0.0.1", False),
        ("127.0.0.1", "", "127.0.0.1", False),
        ("192.0.2.7", "192.0.2.7:2346", "192.0.2.7", True),
        ("0.0.0.0", "192.0.2.7:2346", "192.0.2.7", True),
        ("0.0.0.0", "198.51.100.7", "172.17.0.2", True),
        ("0.0.0.0", "evil.example", "192.0.2.7", False),
    ],
)
def test_only_hosts_of_this_server_are_answered(
    server: str, host: str, socket_address: str, expected: bool
) -> None:
    """Configured names, loopback and own addresses are answered, other names are not."""
    ours = addresses(host=server, hosts=("maps.example",))

    assert ours.answers({**scope(host=host), "server": (socket_address, 2346)}) is expected


def test_a_request_without_host_is_answered_and_one_with_two_is_not() -> None:
    """Probes may leave Host out; browsers never do. Two of them are ambiguous."""
    double = scope(host="localhost")
    double["headers"] *= 2

    assert addresses().answers(scope())
    assert not addresses().answers(double)
    assert addresses(hosts=("*",)).answers(scope(host="evil.example"))


def test_the_machines_own_name_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host name of the machine, and its name in the local network, need no configuration."""
    monkeypatch.setattr("socket.gethostname", lambda: "Radar.lan.example")

    for host in ("radar.lan.example:2346", "radar.local"):
        assert addresses().answers(scope(host=host))


def test_a_trusted_proxy_sets_the_scope() -> None:
    """Client address and scheme come from a trusted proxy; other requests stay unchanged.

    The scheme counts even where the proxy sends no address.
    """
    ours = addresses(forwarded_allow_ips=("127.0.0.1",))
    plain = scope(host="localhost")

    assert ours.forwarded(plain) is plain
    assert ours.forwarded(scope(x_forwarded_proto="https"))["scheme"] == "https"
    assert ours.forwarded(scope(x_forwarded_for="198.51.100.7"))["client"] == ("198.51.100.7", 0)
    stranger = scope(x_forwarded_for="198.51.100.7", client="192.0.2.1")
    assert ours.forwarded(stranger) is stranger
