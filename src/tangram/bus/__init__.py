"""The server's connections to Redis: names, listener, publisher, and the plugins' client."""

from tangram.bus.bus import Bus, BusStatistics
from tangram.bus.client import RedisClient
from tangram.bus.publisher import Done
from tangram.bus.subscriber import Subscriber, service_nursery
from tangram.bus.subscriptions import Message, Subscription
from tangram.bus.topics import from_channel, parse_to, to_channel

__all__ = [
    "Bus",
    "BusStatistics",
    "Done",
    "Message",
    "RedisClient",
    "Subscriber",
    "Subscription",
    "from_channel",
    "parse_to",
    "service_nursery",
    "to_channel",
]
