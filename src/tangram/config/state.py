"""The state folder, and secrets in it: made once, readable by their owner only."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tangram.config.model import Config
from tangram.errors import ConfigError, Fault

__all__ = [
    "OPERATOR_TOKEN",
    "SECRET_LEAST",
    "broker_folder",
    "cache_dir",
    "ensure_secret",
    "find_operator_token",
    "open_state_dir",
]

_SECRET_BYTES: Final = 32
"""Bytes of a new secret, as many as HMAC-SHA-256 has (RFC 7518, 3.2); written as hexadecimal."""

OPERATOR_TOKEN: Final = "operator-token"  # noqa: S105 - the name of a file
"""The file of the operator's token in the state folder."""

SECRET_LEAST: Final = 16
"""Characters below which a secret file is refused: 16 hexadecimal digits take 2**63 guesses on average."""

SECRET_MOST: Final = 4096
"""Characters above which a secret file is refused: it must fit into one HTTP header."""


def _xdg(environ: Mapping[str, str], variable: str, fallback: str) -> Path:
    if named := environ.get(variable):
        return Path(named) / "tangram"
    try:
        return Path(environ.get("HOME") or "~").expanduser() / fallback / "tangram"
    except RuntimeError:
        what = f"this account has no home folder: expected HOME or {variable} to name one"
        raise ConfigError([Fault(what, variable, "no_home")]) from None


def cache_dir(environ: Mapping[str, str]) -> Path:
    """Return the folder for fetched files if ``local_path`` is unset; it is not created here.

    Raises:
        ConfigError: the account has no home folder.
    """
    return _xdg(environ, "XDG_CACHE_HOME", ".cache")


def open_state_dir(config: Config, environ: Mapping[str, str]) -> Path:
    """Return the state folder, and create it with mode 0700 if it does not exist.

    A folder that is created here, and the default one, are closed to other accounts. A configured folder
    that exists keeps its mode, because the operator may share it (``/tmp``), but is refused if others may
    write to it.

    Raises:
        ConfigError: the folder cannot be created, belongs to another account, or others may write to it.
    """
    path = _state_dir(config, environ)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        ours = config.server.state_dir is None or not path.exists()
        path.mkdir(mode=0o700, exist_ok=True)
        if ours:
            path.chmod(0o700)
        status = path.stat()
    except OSError as error:
        raise _fault(
            f"cannot keep state in {str(path)!r}: {(error.strerror or str(error)).lower()}"
        ) from None
    if status.st_uid not in _trusted_owners():
        raise _fault(
            f"the folder {str(path)!r} belongs to another account (uid {status.st_uid}), which could replace "
            f"the secrets in it: expected uid {os.geteuid()}; change its owner, or set another folder"
        )
    if status.st_mode & 0o022:
        mode = stat.S_IMODE(status.st_mode)
        raise _fault(f"others may write to {str(path)!r} (mode {mode:04o}): expected 0700")
    return path


def _state_dir(config: Config, environ: Mapping[str, str]) -> Path:
    return config.server.state_dir or _xdg(environ, "XDG_STATE_HOME", ".local/state")


def find_operator_token(config: Config, environ: Mapping[str, str]) -> str | None:
    """Return the operator's token for a command, or None if no server has made one.

    Raises:
        ConfigError: the file cannot be read by this account, or holds no secret.
    """
    if config.server.operator_token is not None:
        return config.server.operator_token
    file = _state_dir(config, environ) / OPERATOR_TOKEN
    try:
        return _read_secret(file)
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise _fault(
            f"cannot read {str(file)!r}: {reason}; run the command as the account of the server"
        ) from None


def broker_folder(config: Config, environ: Mapping[str, str]) -> Path | None:
    """Return the embedded broker's working folder, made in the state folder with mode 0700.

    It is None if the state folder cannot be used and the broker does not need it, as in a read-only container
    whose secrets are all configured.

    Raises:
        ConfigError: ``broker.private`` needs the folder for its socket, and it cannot be used.
    """
    try:
        folder = open_state_dir(config, environ) / "broker"
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
    except (ConfigError, OSError) as error:
        if not config.broker.private:
            return None
        if isinstance(error, ConfigError):
            raise
        raise _fault(f"cannot keep the broker's socket: {(error.strerror or str(error)).lower()}") from None
    return folder


def ensure_secret(path: Path, name: str) -> str:
    """Return the secret in a file, and create the file with a random one if it does not exist.

    Two processes that start together get the same secret: the file appears complete or not at all.

    Args:
        path: the folder.
        name: the name of the file.

    Raises:
        ConfigError: the file cannot be made or read, is no regular file, belongs to another account, or holds
            no secret of at least `SECRET_LEAST` characters.
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
        # A link, not a rename: it fails if another process was first, and that process's secret is used.
        os.link(draft, file)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def _read_secret(file: Path) -> str:
    # O_NONBLOCK: the opening of a FIFO would wait for its writer. A regular file ignores it.
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        _check_secret_file(file, descriptor)
        content = os.read(descriptor, SECRET_MOST + 1)
    finally:
        os.close(descriptor)
    secret = content.decode(errors="surrogateescape").strip()  # a surrogate is not printable
    remedy = "remove it, and a new one is made"
    if not secret:
        raise _fault(f"the secret file {str(file)!r} is empty: {remedy}")
    if not secret.isprintable() or len(content) > SECRET_MOST:
        raise _fault(
            f"the secret file {str(file)!r} holds no secret: expected one line of text with at most "
            f"{SECRET_MOST} characters; {remedy}"
        )
    if len(secret) < SECRET_LEAST:
        raise _fault(
            f"the secret in {str(file)!r} has {len(secret)} characters: "
            f"expected at least {SECRET_LEAST}; {remedy}"
        )
    return secret


def _check_secret_file(file: Path, descriptor: int) -> None:
    """Refuse a file of another account or kind, and close it to other accounts.

    Raises:
        ConfigError: the file cannot be trusted.
    """
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise _fault(f"{str(file)!r} is no regular file: remove it, and a secret is made in its place")
    if status.st_uid not in _trusted_owners():
        raise _fault(
            f"the secret file {str(file)!r} belongs to another account (uid {status.st_uid}): "
            f"expected uid {os.geteuid()}; change its owner, or remove it, and a new one is made"
        )
    if status.st_mode & 0o077:
        if status.st_uid != os.geteuid():
            raise _fault(
                f"others may read the secret file {str(file)!r} of root: "
                f"expected mode 0600 and uid {os.geteuid()}"
            )
        os.fchmod(descriptor, 0o600)


def _trusted_owners() -> tuple[int, int]:
    """Return the accounts whose files are trusted: this process's, and root's."""
    return os.geteuid(), 0


def _fault(what: str) -> ConfigError:
    return ConfigError([Fault(what, "server.state_dir", "state_dir")])
