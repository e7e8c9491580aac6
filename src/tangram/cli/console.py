"""The command ``console``: open the operator's page in a browser, logged in."""

from __future__ import annotations

import sys
import webbrowser

from tangram.cli.remote import ServerAddress

__all__ = ["open_console"]


def open_console(server: ServerAddress, *, browse: bool) -> int:
    """Print a URL that logs in once, within a minute, and open it if this is a terminal.

    It returns the exit status.

    The code stands behind the ``#``, so that it reaches neither a server's log nor another page.
    """
    code = server.post("/-/session/code")["code"]
    url = f"{server.url.rstrip('/')}/-/#code={code}"
    sys.stdout.write(f"{url}\n")
    sys.stdout.flush()
    if browse and sys.stdout.isatty():
        webbrowser.open(url)
    return 0
