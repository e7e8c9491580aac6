"""Declared channels: typed messages to browsers, and pushes with checked payloads."""

from tangram.declared.channel import DeclaredChannel, Incoming, Outgoing
from tangram.declared.sender import Sender

__all__ = ["DeclaredChannel", "Incoming", "Outgoing", "Sender"]
