"""What Valkey answers, decided without I/O: enough of it for the bus, subscribers and small plugins.

1. Nothing here waits, opens or sends; the time is asked of whoever made the server.
   ``tangram.testing.fakes.memory_broker`` is the shell around it.
2. The referee is valkey-server 9.1: where an answer differs from its, this one is wrong.
   ``conformance.check_broker`` runs over both.
3. Everything is kept in the order in which it came, sets as well: a run that is played again from its seed
   sees the same answers.
4. What is not here answers with an error that says so; nothing is taken and then ignored.
"""

from tangram.testing.fakes.valkey.server import Valkey
from tangram.testing.fakes.valkey.session import ClientState, OutputLimit
from tangram.testing.fakes.valkey.wire import ProtocolFault, Requests

__all__ = ["ClientState", "OutputLimit", "ProtocolFault", "Requests", "Valkey"]
