"""The process's limit on file descriptors, and the errors of a process that has none left.

Each connection, file and pipe takes one descriptor. The usual soft limit is 1,024, which one client with
1,100 connections could use up; then plugins cannot open files, and Redis cannot be reached again. Therefore
the soft limit is raised to the hard one at the start, and connections never get all of it.
"""

from __future__ import annotations

import errno
import resource
from typing import Final

from tangram.groups import leaves

__all__ = ["EXHAUSTED", "connection_limit", "exhaustion_note", "is_exhaustion", "raise_descriptor_limit"]

EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Errors that mean that the process, or the machine, is short of descriptors or memory."""

MAX_LIMIT: Final = 1_048_576
"""The largest soft limit that is set: Linux's own default maximum (``fs.nr_open``).

Some containers have a hard limit of 10^9, and programs that close every possible descriptor in a loop would
take minutes as child processes.
"""

RESERVED_SHARE: Final = 4
"""One of this many descriptors is kept for plugins, files and Redis, and not used for connections."""

MAX_RESERVED: Final = 4096
"""The largest reserve: a plugin with more open files needs a higher limit in any case."""


def raise_descriptor_limit() -> int:
    """Raise the soft limit on open files to the hard one, and return the limit that holds now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_LIMIT if hard == resource.RLIM_INFINITY else min(hard, MAX_LIMIT)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):  # some sandboxes refuse it
            return soft
        return wanted
    return MAX_LIMIT if soft == resource.RLIM_INFINITY else soft


def connection_limit(configured: int) -> int:
    """Return the number of connections that fit the present soft limit.

    Args:
        configured: ``[server] max_connections``; 0 means no limit of its own.

    Returns:
        ``configured``, or less so that a reserve of descriptors is left. For example 768 with a soft limit of
        1,024.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        soft = MAX_LIMIT
    fitting = max(1, soft - min(soft // RESERVED_SHARE, MAX_RESERVED))
    return min(configured, fitting) if configured else fitting


def is_exhaustion(error: BaseException) -> bool:
    """Return whether an error, or its cause, means that descriptors or memory are used up.

    Exception groups are searched, and causes too: ``trio.open_tcp_stream`` raises an ``OSError`` without a
    number whose cause has it.
    """
    for leaf in leaves(error):
        if isinstance(leaf, OSError) and leaf.errno in EXHAUSTED:
            return True
        if leaf.__cause__ is not None and is_exhaustion(leaf.__cause__):
            return True
    return False


def exhaustion_note(error: BaseException) -> str:
    """Return a note for an error that means that no descriptor is left, else ``""``."""
    number = getattr(error, "errno", None)
    if number == errno.EMFILE:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return f"the process has used up its {soft} file descriptors (ulimit -n, LimitNOFILE of systemd)"
    if number == errno.ENFILE:
        return "the machine has used up its file descriptors (sysctl fs.file-max)"
    if error.__cause__ is None:
        return ""
    return next((note for leaf in leaves(error.__cause__) if (note := exhaustion_note(leaf))), "")
