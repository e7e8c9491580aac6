"""Checks for every implementation of a broker, transport or plugin."""

from tangram.chaos.conformance.broker import Broker, check_broker
from tangram.chaos.conformance.transport import Transport, check_transport, transport_of
from tangram.testing.conformance import check_plugin

__all__ = ["Broker", "Transport", "check_broker", "check_plugin", "check_transport", "transport_of"]
