"""The forms of ``[server] host``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tangram.config.listen import first_name, listens_on_all, split_hosts
from tangram.errors import ConfigError
from tests.config.test_load import load


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("127.0.0.1", ("127.0.0.1",)),
        ("", ("*",)),
        ("*", ("*",)),
        ("::", ("*",)),
        ("[::1]", ("::1",)),
        ("::1, 127.0.0.1", ("::1", "127.0.0.1")),
        ("*, 127.0.0.1, unix:/run/t.sock", ("*", "unix:/run/t.sock")),
        ("unix:/run/t.sock", ("unix:/run/t.sock",)),
        ("fe80::1%eth0", ("fe80::1%eth0",)),
    ],
)
def test_addresses_are_read_in_all_notations(text: str, hosts: tuple[str, ...]) -> None:
    """All addresses have one notation, and brackets are removed."""
    assert split_hosts(text) == hosts


@pytest.mark.parametrize("text", ["http://x", "unix:relative", "a b", "x/y", "127.0.0.1;x"])
def test_other_text_is_a_fault(text: str) -> None:
    """A URL, a relative path and the like are no addresses."""
    with pytest.raises(ValueError, match="expected an"):
        split_hosts(text)


def test_the_url_of_the_server_names_a_usable_address() -> None:
    """All addresses and Unix sockets are replaced by loopback."""
    assert first_name("*") == "127.0.0.1"
    assert first_name("unix:/run/t.sock, ::1") == "::1"
    assert first_name("unix:/run/t.sock") == "127.0.0.1"
    assert listens_on_all("unix:/x, 0.0.0.0")
    assert not listens_on_all("::1")


@pytest.mark.parametrize(
    ("written", "host"),
    [
        ('"*"', "*"),
        ('""', ""),
        ('["127.0.0.1", "::1"]', "127.0.0.1, ::1"),
        ('["unix:/run/t.sock"]', "unix:/run/t.sock"),
    ],
)
def test_the_file_takes_one_address_or_a_list(tmp_path: Path, written: str, host: str) -> None:
    """A list and an empty text are accepted where a single address is."""
    assert load(tmp_path, f"[server]\nhost = {written}\n").server.host == host


def test_a_bad_address_is_a_fault_at_its_setting(tmp_path: Path) -> None:
    """The fault names the setting and the accepted forms."""
    with pytest.raises(ConfigError, match=r"expected an absolute path.*@ server\.host"):
        load(tmp_path, '[server]\nhost = "unix:relative"\n')
