"""Declare channels: topics, messages to browsers, and pushes with their handlers.

1. This file declares only. ``binding.py`` reads the signatures of handlers, ``pool.py`` runs them.
2. `PluginLink` connects the declarations of a plugin with the server in which the plugin runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Concatenate, Final, Generic, ParamSpec, Protocol, TypeVar

import attrs

from tangram.declared.payload import encode_message
from tangram.declared.template import TopicTemplate, parse_template
from tangram.errors import PluginError
from tangram.history.position import Published
from tangram.routing.convert import is_class_like, is_typeddict, origin_of

__all__ = [
    "MAX_PAYLOAD",
    "REPLY_TIMEOUT",
    "DeclaredChannel",
    "Incoming",
    "Outgoing",
    "PluginLink",
    "ReceiveDecorator",
    "SharedState",
]

M = TypeVar("M")
P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])

MAX_PAYLOAD: Final = 262_144
"""Bytes of a payload of JSON, unless its declaration says otherwise.

A payload is read into objects as a whole: that holds the event loop for 17 ms at most with this bound, and
for a second with the 16 MiB of a message.
"""
REPLY_TIMEOUT: Final = 5.0
"""Seconds until a push is replied to, its wait included. phoenix.js waits for ten."""
RESERVED: Final = frozenset({"heartbeat", "presence_state", "presence_diff"})
"""Events of the protocol beside those that begin with ``phx_``."""
MAX_EVENT: Final = 255
"""Bytes of an event, as of the protocol."""


class SharedState(Protocol):
    """The part of ``BackendState`` that declarations use."""

    async def publish(self, channel: str, payload: object) -> Published: ...


@attrs.define(eq=False)
class PluginLink:
    """The connection of a plugin's declarations with the server that runs it."""

    state: SharedState | None = None
    """The state of the plugin's present incarnation; None while it does not run."""

    def require_state(self) -> SharedState:
        """Return the state.

        Raises:
            PluginError: the plugin does not run.
        """
        if self.state is None:
            raise PluginError(
                "the plugin of this channel does not run: publish from its services, handlers or routes"
            )
        return self.state


@attrs.frozen(eq=False)
class Outgoing(Generic[M]):
    """Messages of one event from the server to the browsers that have joined a topic."""

    channel: DeclaredChannel
    event: str
    kind: type[M]
    """The type of the messages."""
    description: str = ""

    async def publish(self, message: M, **parameters: str | int) -> Published:
        """Publish a message on the topic with these parameters; see ``BackendState.publish``.

        Example::

            await position.publish(Position(lat=43.6, lon=1.4), area="eu")

        Raises:
            TypeError: the message has another type, or a parameter is missing or unknown.
            ValueError: a parameter is empty or contains a colon.
            PluginError: the plugin does not run.
            BrokerUnavailable: there is no connection to Redis.
        """
        kind = origin_of(self.kind)
        if is_class_like(kind) and not is_typeddict(kind) and not isinstance(message, kind):
            raise TypeError(f"expected {kind.__name__} for the event {self.event!r}, not {message!r}")
        topic = self.channel.topic(**parameters)
        state = self.channel.link.require_state()
        return await state.publish(f"to:{topic}:{self.event}", encode_message(message))


@attrs.frozen(eq=False)
class Incoming:
    """Pushes of one event from browsers, and the handler that replies to them."""

    channel: DeclaredChannel
    event: str
    kind: Any
    """The type of the payloads."""
    handler: Callable[..., Any]
    reply_timeout: float
    max_payload: int
    """The most bytes of a payload; 0 is no bound."""


class ReceiveDecorator(Protocol[M]):
    """Decorates a handler, whose first parameter is the message."""

    def __call__(self, handler: Callable[Concatenate[M, P], R], /) -> Callable[Concatenate[M, P], R]: ...


@attrs.define(eq=False)
class DeclaredChannel:
    """The topics of one form, and the messages on them.

    ``plugin.channel("flights:{area}")`` makes one.
    """

    template: TopicTemplate
    link: PluginLink = attrs.field(repr=False)
    description: str = ""
    outgoing: dict[str, Outgoing[Any]] = attrs.field(factory=dict, init=False, repr=False)
    """The messages to browsers, by event."""
    incoming: dict[str, Incoming] = attrs.field(factory=dict, init=False, repr=False)
    """The pushes of browsers, by event."""
    authorizer: Callable[..., Any] | None = attrs.field(default=None, init=False, repr=False)
    """Decides which clients may join."""

    def topic(self, **parameters: str | int) -> str:
        """Return the name of the topic with these parameters.

        Raises:
            TypeError: a parameter is missing or unknown.
            ValueError: a value is empty or contains a colon.
        """
        return self.template.fill(parameters)

    def authorize(self, function: F) -> F:
        """Decorate the function that decides which clients may join, sync or async.

        It gets the parameters of the topic by name, and each of ``id``, ``topic``, ``request``
        (``tangram.ConnectInfo``) and ``state`` that it names. It returns None to allow the join, or the
        reason of a refusal; it may also raise ``Refused``. A synchronous function runs in a thread.
        """
        if self.authorizer is not None:
            raise PluginError(f"the channel {self.template.text!r} has an authorize function already")
        self.authorizer = function
        return function

    def sends(self, event: str, kind: type[M], *, description: str = "") -> Outgoing[M]:
        """Declare messages from the server to browsers, and return the object that publishes them.

        Args:
            event: the event.
            kind: the type of the messages: an attrs class, a dataclass, a TypedDict, a ``msgspec.Struct``, a
                plain type such as ``list[int]``, or ``bytes`` for binary messages.
            description: for the documentation; the docstring of the class by default.
        """
        _check_event(event)
        if event in self.outgoing:
            raise PluginError(f"the event {event!r} of {self.template.text!r} is sent already")
        made = self.outgoing[event] = Outgoing(self, event, kind, description)
        return made

    def receives(
        self,
        event: str,
        kind: type[M],
        *,
        reply_timeout: float = REPLY_TIMEOUT,
        max_payload: int | None = None,
    ) -> ReceiveDecorator[M]:
        """Decorate the handler of a push, sync or async; its return value is the reply.

        The first parameter is the message. Further parameters get the ``tangram.Sender`` and the
        ``tangram.BackendState`` by their annotation, and the parameters of the topic by name. A synchronous
        handler runs in a thread.

        Example::

            @flights.receives("select", Select)
            async def select(message: Select, sender: Sender, area: str) -> Selected: ...

        Args:
            event: the event.
            kind: the type of the payloads, as for ``sends``. Faults of a payload are the error reply.
            reply_timeout: seconds after which a push gets an error reply, its wait for the handler included.
            max_payload: the most bytes of a payload; a larger one gets an error reply. By default 262,144 for
                JSON, which is read as a whole, and no bound but ``[channel] max_message`` for ``bytes``,
                which are not read; 0 is no bound.
        """
        _check_event(event)
        if event in self.incoming:
            raise PluginError(f"the event {event!r} of {self.template.text!r} has a handler already")
        if reply_timeout <= 0:
            raise PluginError(f"reply_timeout={reply_timeout!r} must be seconds above 0")
        if max_payload is None:
            max_payload = 0 if kind is bytes else MAX_PAYLOAD
        if max_payload < 0:
            raise PluginError(f"max_payload={max_payload!r} must be bytes, 0 for no bound")

        def register(handler: Callable[Concatenate[M, P], R], /) -> Callable[Concatenate[M, P], R]:
            self.incoming[event] = Incoming(self, event, kind, handler, reply_timeout, max_payload)
            return handler

        return register


def declare_channel(topic: str, link: PluginLink, description: str) -> DeclaredChannel:
    """Return a channel without messages.

    Raises:
        PluginError: the topic is malformed.
    """
    return DeclaredChannel(parse_template(topic), link, description)


def _check_event(event: str) -> None:
    if not event or ":" in event or len(event.encode()) > MAX_EVENT:
        raise PluginError(
            f"expected an event without a colon, of 1 to {MAX_EVENT} bytes, not {event!r}: on Redis the last "
            "colon separates topic and event"
        )
    if event in RESERVED or event.startswith("phx_"):
        raise PluginError(f"the event {event!r} is one of the protocol: choose another name")
