"""A Redis to talk to: an embedded valkey-server, or one that somebody else runs."""

from tangram.broker.embedded import BrokerStatistics, EmbeddedBroker
from tangram.broker.external import ExternalBroker
from tangram.broker.ping import ping

__all__ = [
    "BrokerStatistics",
    "EmbeddedBroker",
    "ExternalBroker",
    "ping",
]
