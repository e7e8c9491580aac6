"""The accounts of the embedded broker: one for the server, one for all other clients.

Any account of the machine can connect to a loopback port. The default user of the broker therefore keeps
data and pub/sub, and loses every command that changes or ends the broker, or reads other clients
(``CONFIG``, ``SHUTDOWN``, ``DEBUG``, ``SAVE``, ``REPLICAOF``, ``MODULE``, ``ACL``, ``MONITOR``, ``CLIENT
KILL`` and others). The server has a user of its own with a random password and every right.

The command line holds the SHA-256 of each password, and not the password. It is readable for every account,
and harmless: a random password of 32 bytes cannot be guessed.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

__all__ = ["SERVER_USER", "Accounts", "port_url", "socket_url"]

SERVER_USER: Final = "tangram"
"""The broker's user for the server itself."""

_PASSWORD_BYTES: Final = 32

_ALL: Final = ("~*", "&*", "+@all")
_HARMLESS: Final = ("+keys", "+sort", "+info", "+role", "+flushdb", "+flushall")
"""Commands of the categories admin and dangerous that the default user keeps: they read or delete data,
which it can do anyway, or describe the broker. Redis 6.2 knows all of them.
"""


class Accounts:
    """The passwords of one embedded broker, made at random, and the arguments that set them.

    Args:
        ask_clients: whether the default user has a password as well. It stays the same, because plugins
            keep it.
    """

    def __init__(self, *, ask_clients: bool) -> None:
        self.renew()
        self.client_password = secrets.token_hex(_PASSWORD_BYTES) if ask_clients else None

    def renew(self) -> None:
        """Make a new password for the server.

        Each run of the child has its own: a foreign program may listen on the port that the child wanted, and
        gets the password before the child is known to have failed.
        """
        self.server_password = secrets.token_hex(_PASSWORD_BYTES)

    def arguments(self) -> Sequence[str]:
        """Return the arguments of valkey-server that define both users."""
        login = "nopass" if self.client_password is None else _hashed(self.client_password)
        default = ("default", "on", login, *_ALL, "-@admin", "-@dangerous", *_HARMLESS)
        server = (SERVER_USER, "on", _hashed(self.server_password), *_ALL)
        return ["--user", *default, "--user", *server]


def _hashed(password: str) -> str:
    return f"#{hashlib.sha256(password.encode()).hexdigest()}"


def port_url(port: int, accounts: Accounts, *, server: bool) -> str:
    """Return the URL of a broker on loopback, for the server or for all other clients."""
    if server:
        login = f"{SERVER_USER}:{accounts.server_password}@"
    else:
        login = f":{accounts.client_password}@" if accounts.client_password else ""
    return f"redis://{login}127.0.0.1:{port}"


def socket_url(path: Path, accounts: Accounts, *, server: bool) -> str:
    """Return the URL of a broker on a Unix socket, for the server or for all other clients."""
    password = accounts.server_password if server else accounts.client_password
    user = f"username={SERVER_USER}&" if server else ""
    return f"unix://{quote(str(path))}?{user}password={password}"
