"""The answers of a Valkey server, without I/O: enough for the bus and small plugins.

1. Nothing here waits, opens or sends; the owner of the server tells the time.
   `tangram.testing.fakes.memory_broker` is the shell around it.
2. The reference is valkey-server 9.1: where an answer differs, this one is wrong. ``check_broker`` of
   `tangram.chaos.conformance` runs over both.
3. Everything keeps its order of insertion, sets as well: a run that is played again from its seed sees
   the same answers.
4. Unknown commands and options answer with an error; nothing is accepted and then ignored.

Why it is written by hand: ``fakeredis`` reads the wall clock in private modules, orders sets by
Python's hash seed and does not check RESP3, ``HELLO`` or garbage as Valkey does, so that a seed would
not replay.
"""

from tangram.testing.fakes.valkey.server import Valkey
from tangram.testing.fakes.valkey.session import ClientState, OutputLimit
from tangram.testing.fakes.valkey.wire import ProtocolFault, Requests

__all__ = ["ClientState", "OutputLimit", "ProtocolFault", "Requests", "Valkey"]
