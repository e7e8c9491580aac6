"""What every broker, transport and plugin must do, the fake and the real one alike."""

from tangram.testing.conformance.broker import Broker, check_broker
from tangram.testing.conformance.plugin import check_plugin
from tangram.testing.conformance.transport import Transport, check_transport, transport_of

__all__ = ["Broker", "Transport", "check_broker", "check_plugin", "check_transport", "transport_of"]
