"""A Redis to talk to: an embedded valkey-server, or one that somebody else runs."""

from tangram.broker.embedded import BrokerStatistics, EmbeddedBroker
from tangram.broker.external import ExternalBroker
from tangram.broker.ping import ping
from tangram.broker.urls import local_url, parse_redis_url, redact_url

__all__ = [
    "BrokerStatistics",
    "EmbeddedBroker",
    "ExternalBroker",
    "local_url",
    "parse_redis_url",
    "ping",
    "redact_url",
]
