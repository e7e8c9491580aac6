"""History: messages that browsers missed are kept on Redis and sent when they come back.

See docs/history.md. The functions on Redis are in ``functions.lua``.
"""

from tangram.history.position import Position, Published, parse_position
from tangram.history.rules import History, Rules

__all__ = ["History", "Position", "Published", "Rules", "parse_position"]
