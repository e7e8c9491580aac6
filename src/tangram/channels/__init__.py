"""Phoenix channels without a network: frames, topics with members, and access policy."""

from tangram.channels.policy import ConnectInfo

__all__ = ["ConnectInfo"]
