"""The factory of a whole server, for rooms below ``app`` that must not import it.

The package ``tangram`` registers the factory when it is imported, which is always before any of its modules.
So ``compat.runtime`` runs a server in a thread without knowing ``app``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["make_server_in_thread", "register_server_in_thread"]

_factory: list[Callable[..., Any]] = []
"""Empty, or the registered factory."""


def register_server_in_thread(factory: Callable[..., Any]) -> None:
    """Set the factory that `make_server_in_thread` calls."""
    _factory[:] = [factory]


def make_server_in_thread(*args: Any) -> Any:
    """Return a ``tangram.app.in_thread.HostedServer`` that is made with these arguments.

    Raises:
        LookupError: no factory has been registered.
    """
    if not _factory:
        raise LookupError("no server factory is registered: import the package tangram first")
    return _factory[0](*args)
