"""The folder that outlives the process, and the secrets in it: readable by their owner alone, made once."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from tangram.config.model import Config
from tangram.errors import ConfigError, Fault

__all__ = ["cache_dir", "ensure_secret", "open_state_dir"]

_SECRET_BYTES = 32
"""As many as HMAC-SHA-256 has (RFC 7518, 3.2); written as hexadecimal."""


def _xdg(environ: Mapping[str, str], variable: str, fallback: str) -> Path:
    if named := environ.get(variable):
        return Path(named) / "tangram"
    try:
        return Path(environ.get("HOME") or "~").expanduser() / fallback / "tangram"
    except RuntimeError:
        what = f"this account has no home folder: expected HOME or {variable} to name one"
        raise ConfigError([Fault(what, variable, "no_home")]) from None


def cache_dir(environ: Mapping[str, str]) -> Path:
    """Where fetched files are kept when ``local_path`` is unset; not created here. ``ConfigError`` where
    nobody knows the home folder.
    """
    return _xdg(environ, "XDG_CACHE_HOME", ".cache")


def open_state_dir(config: Config, environ: Mapping[str, str]) -> Path:
    """``server.state_dir``, made with mode 0700 if need be.

    A folder of our own (made here, or the default one) is closed to others. One that the operator had before
    keeps its mode (closing ``/tmp`` would take the machine down), but is refused if others may write to it.
    Raises ``ConfigError``.
    """
    path = config.server.state_dir or _xdg(environ, "XDG_STATE_HOME", ".local/state")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        ours = config.server.state_dir is None or not path.exists()
        path.mkdir(mode=0o700, exist_ok=True)
        if ours:
            path.chmod(0o700)
        mode = path.stat().st_mode
    except OSError as error:
        raise _fault(
            f"cannot keep state in {str(path)!r}: {(error.strerror or str(error)).lower()}"
        ) from None
    if mode & 0o022:
        raise _fault(f"others may write to {str(path)!r} (mode {stat.S_IMODE(mode):04o}): expected 0700")
    return path


def ensure_secret(path: Path, name: str) -> str:
    """The secret in the file ``name`` of the folder ``path``, made at random where there is none.

    Two processes that start at one time agree on one secret: the file appears complete, under its name, or
    not at all. Raises ``ConfigError`` where the file cannot be made or read, or is empty.
    """
    file = path / name
    try:
        if not file.exists():
            _make_secret(file)
        return _read_secret(file)
    except OSError as error:
        raise _fault(
            f"cannot keep a secret in {str(file)!r}: {(error.strerror or str(error)).lower()}"
        ) from None


def _make_secret(file: Path) -> None:
    draft = file.with_name(f".{file.name}.{os.getpid()}.{os.urandom(4).hex()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as stream:
            stream.write(os.urandom(_SECRET_BYTES).hex() + "\n")
            stream.flush()
            os.fsync(descriptor)
        # A link, not a rename: it fails where another process was first, whose secret is then the one.
        os.link(draft, file)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def _read_secret(file: Path) -> str:
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with os.fdopen(descriptor) as stream:
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode) and status.st_mode & 0o077:
            os.fchmod(descriptor, 0o600)
        secret = stream.read().strip()
    if not secret:
        raise _fault(f"the secret file {str(file)!r} is empty: remove it, and a new one is made")
    return secret


def _fault(what: str) -> ConfigError:
    return ConfigError([Fault(what, "server.state_dir", "state_dir")])
