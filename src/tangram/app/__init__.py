"""The composition root: configuration in, supervision tree out. The only room that knows every room below it.

``server`` is the life of the process, ``tree`` the children and what they know of each other, ``reload`` what
another configuration may change, ``ledger`` what happened, ``operations`` what the operator sees and may do.
"""

from tangram.app.event_log import EventLog
from tangram.app.server import Boot, Server, run_server

__all__ = ["Boot", "EventLog", "Server", "run_server"]
