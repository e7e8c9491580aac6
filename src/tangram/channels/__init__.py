"""Phoenix channels without a network: what frames mean, who is on which topic, who may come in."""

from tangram.channels.policy import ConnectInfo

__all__ = ["ConnectInfo"]
