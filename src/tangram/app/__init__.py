"""The composition root: makes the supervision tree from a configuration.

It is the only room that knows every room below it. ``server`` runs the process from its sockets to its end,
``tree`` makes the children, ``incarnation`` holds the parts of one start of them, ``reload`` compares two
configurations, ``event_log`` keeps events, ``status`` answers the operator's requests.
"""

from tangram.app.event_log import EventLog
from tangram.app.server import Boot, Server, run_server

__all__ = ["Boot", "EventLog", "Server", "run_server"]
