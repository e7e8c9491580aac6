"""The state folder and its secrets."""

import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from tangram.config.model import Config, ServerConfig
from tangram.config.state import cache_dir, ensure_secret, open_state_dir
from tangram.errors import ConfigError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def configured(path: Path) -> Config:
    return Config(server=ServerConfig(state_dir=path))


def test_the_default_folder_is_private(tmp_path: Path) -> None:
    """It is created below XDG_STATE_HOME, or below the home folder."""
    by_xdg = open_state_dir(Config(), {"XDG_STATE_HOME": str(tmp_path / "a" / "b")})
    by_home = open_state_dir(Config(), {"HOME": str(tmp_path)})

    assert by_xdg == tmp_path / "a" / "b" / "tangram"
    assert by_home == tmp_path / ".local" / "state" / "tangram"
    assert mode(by_xdg) == mode(by_home) == 0o700


def test_an_open_default_folder_is_closed(tmp_path: Path) -> None:
    """A default folder that others could read gets mode 0700."""
    folder = tmp_path / "tangram"
    folder.mkdir(mode=0o755)

    assert mode(open_state_dir(Config(), {"XDG_STATE_HOME": str(tmp_path)})) == 0o700


def test_a_configured_folder_keeps_its_mode(tmp_path: Path) -> None:
    """A new one gets 0700; an existing one is refused if others may write to it."""
    assert mode(open_state_dir(configured(tmp_path / "new"), {})) == 0o700
    there = tmp_path / "there"
    there.mkdir()
    there.chmod(0o755)
    assert mode(open_state_dir(configured(there), {})) == 0o755
    there.chmod(0o777)
    with pytest.raises(ConfigError, match="others may write"):
        open_state_dir(configured(there), {})


def test_a_file_in_place_of_the_folder_is_a_fault(tmp_path: Path) -> None:
    """The fault is at ``server.state_dir``."""
    (tmp_path / "file").touch()

    with pytest.raises(ConfigError) as raised:
        open_state_dir(configured(tmp_path / "file" / "state"), {})

    assert raised.value.faults[0].path == "server.state_dir"


def test_a_secret_is_made_once(tmp_path: Path) -> None:
    """The first call makes a long random secret, and later calls read it."""
    secret = ensure_secret(tmp_path, "jwt-secret")

    assert len(secret) == 64
    assert ensure_secret(tmp_path, "jwt-secret") == secret
    assert ensure_secret(tmp_path, "other") != secret
    assert mode(tmp_path / "jwt-secret") == 0o600
    assert {path.name for path in tmp_path.iterdir()} == {"jwt-secret", "other"}


def test_an_existing_secret_is_used(tmp_path: Path) -> None:
    """It is taken as it is, and closed to other accounts."""
    file = tmp_path / "operator-token"
    file.write_text("chosen by the operator\n")
    file.chmod(0o644)

    assert ensure_secret(tmp_path, "operator-token") == "chosen by the operator"
    assert mode(file) == 0o600


def test_bad_secret_files_are_faults(tmp_path: Path) -> None:
    """An empty file, a link and a folder are refused."""
    (tmp_path / "empty").touch()
    (tmp_path / "target").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "folder").mkdir()

    for name in ("empty", "link", "folder"):
        with pytest.raises(ConfigError):
            ensure_secret(tmp_path, name)
    with pytest.raises(ConfigError):
        ensure_secret(tmp_path / "nowhere", "x")


SECRETS = {
    "a byte that is no text": (b"\xff" * 64, "holds no secret"),
    "a control character": (b"0123456789abcdef\0" * 4, "holds no secret"),
    "two lines": (b"0123456789abcdef\n0123456789abcdef\n", "holds no secret"),
    "too much": (b"x" * 5000, "at most 4096"),
    "one byte": (b"x", "has 1 characters: expected at least 16"),
    "spaces": (b"  \n \n", "is empty"),
}


@pytest.mark.parametrize(("content", "message"), SECRETS.values(), ids=SECRETS)
def test_a_file_that_holds_no_secret_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    """A secret is one line of 16 to 4,096 characters; the fault says how to get a new one."""
    (tmp_path / "jwt-secret").write_bytes(content)

    with pytest.raises(ConfigError, match=f"{message}.*remove it, and a new one is made"):
        ensure_secret(tmp_path, "jwt-secret")


@pytest.mark.parametrize("kind", ["fifo", "socket", "folder"])
def test_a_secret_is_a_regular_file(tmp_path: Path, kind: str) -> None:
    """The start does not wait for the writer of a FIFO."""
    file = tmp_path / "jwt-secret"
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(file))
    else:
        file.mkdir()
    errors: list[ConfigError] = []

    def read() -> None:
        with pytest.raises(ConfigError) as raised:
            ensure_secret(tmp_path, "jwt-secret")
        errors.append(raised.value)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(5)

    assert errors
    # A socket cannot even be opened.
    expected = "cannot keep a secret" if kind == "socket" else "is no regular file"
    assert expected in str(errors[0])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_files_of_another_account_are_refused(tmp_path: Path) -> None:
    """Another account could know the secret in its file, or replace the secrets in its folder."""
    ensure_secret(tmp_path, "jwt-secret")
    os.chown(tmp_path / "jwt-secret", 65534, -1)
    with pytest.raises(ConfigError, match=r"belongs to another account \(uid 65534\)"):
        ensure_secret(tmp_path, "jwt-secret")
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    os.chown(folder, 65534, -1)
    with pytest.raises(ConfigError, match=r"belongs to another account \(uid 65534\)"):
        open_state_dir(configured(folder), {})


def test_processes_that_start_together_get_one_secret(tmp_path: Path) -> None:
    """Each gets the same complete secret."""
    barrier, secrets = threading.Barrier(8), list[str]()

    def make() -> None:
        barrier.wait()
        secrets.append(ensure_secret(tmp_path, "s"))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(secrets) == 8
    assert len(set(secrets)) == 1
    assert os.listdir(tmp_path) == ["s"]  # noqa: PTH208 - names alone


def test_the_cache_folder_is_not_created(tmp_path: Path) -> None:
    """The function returns its path only."""
    assert cache_dir({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "tangram"
    assert cache_dir({"HOME": str(tmp_path)}) == tmp_path / ".cache" / "tangram"
    assert list(tmp_path.iterdir()) == []


def test_an_account_without_a_home_needs_a_configured_folder(tmp_path: Path, homeless: None) -> None:
    """Without a configured folder, the fault names the missing variable."""
    there = {"XDG_STATE_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    assert open_state_dir(Config(), there) == cache_dir(there) == tmp_path / "tangram"
    with pytest.raises(ConfigError, match=r"no home folder.*XDG_STATE_HOME"):
        open_state_dir(Config(), {})
    with pytest.raises(ConfigError, match=r"no home folder.*XDG_CACHE_HOME"):
        cache_dir({})
