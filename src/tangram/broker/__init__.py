"""A Redis for the server: an embedded valkey-server, or a watch on an external one."""

from tangram.broker.embedded import BrokerStatistics, EmbeddedBroker
from tangram.broker.external import ExternalBroker
from tangram.broker.ping import ping
from tangram.broker.shared import SharedBroker

__all__ = ["BrokerStatistics", "EmbeddedBroker", "ExternalBroker", "SharedBroker", "ping"]
