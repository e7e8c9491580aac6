import pytest

from tangram.bus.urls import parse_url
from tangram.errors import ConfigError


def test_tcp() -> None:
    """Host, port, account and database are read; what is left out has redis's defaults."""
    address = parse_url("redis://user:p%40ss@example.org:7000/3")

    assert (address.host, address.port, address.db, address.tls) == ("example.org", 7000, 3, False)
    assert (address.username, address.password) == ("user", "p@ss")
    plain = parse_url("redis://")
    assert (plain.host, plain.port, plain.db, plain.password) == ("localhost", 6379, 0, None)


def test_ipv6_and_a_password_alone() -> None:
    """An address in brackets is a host; a password may stand without a user."""
    address = parse_url("redis://:secret@[::1]:1?db=4")

    assert (address.host, address.port, address.db) == ("::1", 1, 4)
    assert (address.username, address.password) == (None, "secret")


def test_unix_and_tls() -> None:
    """A socket's path, and the certificate's options, go by redis-py's names."""
    assert parse_url("unix:///run/redis.sock?db=2").path == "/run/redis.sock"
    assert parse_url("unix:///run/redis.sock?db=2").db == 2
    secured = parse_url("rediss://host?ssl_ca_certs=/ca.pem")
    assert secured.tls
    assert secured.options == {"ssl_ca_certs": "/ca.pem"}


def test_a_username_without_a_password_is_harmless() -> None:
    """Some providers write user names that mean nothing; without a password nobody logs in."""
    assert parse_url("redis://user@host").password is None


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("http://x", "scheme"),
        ("", "scheme"),
        ("redis://h:99999", "ort"),
        ("redis://h/x", "database"),
        ("unix://", "path"),
    ],
)
def test_faults_name_the_setting_and_hide_the_password(url: str, what: str) -> None:
    """A URL that is none is a configuration fault that says what was expected."""
    with pytest.raises(ConfigError, match=what) as caught:
        parse_url(url.replace("://h", "://u:s3cret@h"))

    assert "core.redis_url" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in repr(parse_url("redis://u:s3cret@h"))
