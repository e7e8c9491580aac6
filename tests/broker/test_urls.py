import pytest

from tangram.broker.urls import RedisAddress, local_url, parse_redis_url, redact_url


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://h", RedisAddress("h", 6379)),
        ("redis://:p%40w@h:1/2", RedisAddress("h", 1, password="p@w")),
        ("rediss://u:p@h", RedisAddress("h", 6379, tls=True, username="u", password="p")),
        ("redis://[::1]:7", RedisAddress("::1", 7)),
        (
            "rediss://h?password=%2525&ssl_ca_certs=/ca.pem",
            RedisAddress("h", 6379, tls=True, password="%25", options={"ssl_ca_certs": "/ca.pem"}),
        ),
        ("unix:///run/v.sock?password=x", RedisAddress("", 6379, path="/run/v.sock", password="x")),
        (local_url(5), RedisAddress("127.0.0.1", 5)),
    ],
)
def test_parts_of_a_url(url: str, address: RedisAddress) -> None:
    """Host, port, socket, TLS with its options, and credentials are read, the latter unquoted."""
    assert parse_redis_url(url) == address


@pytest.mark.parametrize(
    "url", ["", "http://h", "redis://", "unix://", "redis://:hunter2@h:99999", "redis://[::1"]
)
def test_what_is_no_url(url: str) -> None:
    """Anything else is a ValueError that does not tell the password."""
    with pytest.raises(ValueError, match="expected a redis://") as raised:
        parse_redis_url(url)
    assert "hunter2" not in str(raised.value)


def test_no_password_in_repr() -> None:
    """An address in a traceback, and a redacted URL, do not tell the password."""
    assert "hunter2" not in repr(parse_redis_url("redis://u:hunter2@h"))
    assert redact_url("redis://u:hunter2@h:1/0") == "redis://u:***@h:1/0"
    assert redact_url("redis://h:1") == "redis://h:1"
