"""The exceptions of tangram, and the party that each one blames.

    TangramError
    |- OperatorError                  the operator of the server
    |  |- ConfigError                 a setting is wrong: every fault at once; exit status 2
    |  |- AddressError                an address cannot be listened on; exit status 1
    |  |- BrokerStartError            the embedded broker cannot be started; exit status 1
    |  `- NodeNameTaken               another server of the cluster has the same name; exit status 1
    |- PluginError                    the author of a plugin, or its installation
    |  |- PluginNotFound              no installed plugin has that name
    |  |- PluginImportFailed          its module raised while it was imported
    |  |- NotAPlugin                  its entry point is something else than a Plugin
    |  |- PluginConfigError           its table in the configuration is wrong
    |  |- RouteError                  a route cannot be declared as written
    |  |- ServiceError                a function for services was called elsewhere
    |  `- PluginExited                its code raised SystemExit, which does not end the server
    |- RequestError                   the client that sent the request
    |  |- BadRequest                  a parameter or body is wrong: every fault at once; status 422
    |  `- Refused                     a plugin or the policy says no, with a reason; status 403
    |- BrokerUnavailable              the environment: Redis is away, or did not answer in time
    |  `- BrokerRefused                the rights of the account: Redis refused a command
    |- SupervisionError               the supervision tree
    |  |- SpecError                   a child or supervisor is declared wrongly
    |  |- StartFailed                 a child did not start; its cause is attached
    |  |- StartTimeout                a child did not report its start within its limit
    |  |- RestartsExhausted           more restarts than the window allows; the last crashes are attached
    |  |- ChildReturned               a permanent child returned, which counts as a crash
    |  |- ChildStubborn               a child does not end although it was cancelled
    |  |- WorkerEnded                 a worker process ended by itself, or was killed
    |  `- NoSuchChild                 the supervisor has no child of that name
    `- ChannelClosed                  the client library: the channel or its socket is closed

Any other exception that leaves the server is a bug. Messages are lower-case, end without a full stop, show
the wrong value with ``!r``, name the expectation, and say how to proceed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

__all__ = [
    "AddressError",
    "BadMessage",
    "BadRequest",
    "BrokerRefused",
    "BrokerStartError",
    "BrokerUnavailable",
    "ChannelClosed",
    "ChildReturned",
    "ChildStubborn",
    "CompiledModule",
    "ConfigError",
    "Fault",
    "NoSuchChild",
    "NodeNameTaken",
    "NotAPlugin",
    "OperatorError",
    "PluginConfigError",
    "PluginError",
    "PluginExited",
    "PluginImportFailed",
    "PluginNotFound",
    "Refused",
    "RequestError",
    "RestartsExhausted",
    "RouteError",
    "ServiceError",
    "SpecError",
    "StartFailed",
    "StartTimeout",
    "SupervisionError",
    "TangramError",
    "WorkerEnded",
]


class Fault(NamedTuple):
    """One mistake in a configuration or request; printed as ``what @ path``."""

    what: str
    """The mistake and the expectation: lower-case, without a full stop."""
    path: str
    """The place of the mistake: ``server.port``, ``body.items[2].name``, ``query.limit``."""
    kind: str = "value_error"
    """A stable word for programs: ``missing``, ``int_parsing``, ``unknown_key``."""

    def __str__(self) -> str:
        return f"{self.what} @ {self.path}"


class TangramError(Exception):
    """The base class of all exceptions that tangram raises on purpose."""


class OperatorError(TangramError):
    """A mistake that the operator can correct; it is shown in one line without a traceback."""

    exit_status = 1


class _Faulty(TangramError):
    def __init__(self, faults: Sequence[Fault], *, about: str = "") -> None:
        self.faults = tuple(faults)
        self.about = about
        # Not super(): a class with a second base has another __init__ behind this one.
        Exception.__init__(self, about, self.faults)

    def __str__(self) -> str:
        lines = [str(fault) for fault in self.faults]
        return (
            "\n".join([f"{self.about}:", *(f"  {line}" for line in lines)])
            if self.about
            else "\n".join(lines)
        )


class ConfigError(_Faulty, OperatorError):
    """The configuration is wrong. ``faults`` lists every fault, ``about`` names the file."""

    exit_status = 2


class AddressError(OperatorError):
    """The server cannot listen on an address: in use, forbidden, or not of this machine."""


class BrokerStartError(OperatorError):
    """The embedded broker did not start: no binary, no free port, or it ended at once."""


class NodeNameTaken(OperatorError):
    """Another server on the same Redis has the name of this node, and runs."""


class PluginError(TangramError):
    """A plugin is wrong; ``plugin`` names it. The other plugins go on without it."""

    def __init__(self, message: str, *, plugin: str = "") -> None:
        self.plugin = plugin
        super().__init__(message)


class PluginNotFound(PluginError):
    """No installed plugin has that name."""


class PluginImportFailed(PluginError):
    """The plugin's module raised when it was imported; the cause is attached."""


class CompiledModule(PluginError):
    """The plugin has a compiled module, which cannot be imported twice in one process."""


class NotAPlugin(PluginError):
    """The entry point is not a ``tangram.Plugin``."""


class PluginConfigError(_Faulty, PluginError):
    """The plugin's table in the configuration does not fit its ``config_class``."""

    def __init__(self, faults: Sequence[Fault], *, plugin: str) -> None:
        self.plugin = plugin
        _Faulty.__init__(self, faults, about=f"configuration of plugin {plugin!r}")


class RouteError(PluginError):
    """A route is declared wrongly; it is raised when the plugin is imported."""


class ServiceError(PluginError):
    """A function for services of plugins was called elsewhere."""


class PluginExited(PluginError):
    """The code of a plugin raised ``SystemExit``; that is a crash of the plugin."""


class RequestError(TangramError):
    """A client's request is wrong or not allowed."""


class BadRequest(_Faulty, RequestError):
    """Parameters or body do not fit the route; the answer is status 422 with all faults."""


class BadMessage(RequestError):
    """A message from Redis is malformed; ``tangram.Message.json`` raises it.

    If a service of a plugin does not catch it, the service runs again and the plugin is not charged: no
    message from a browser can crash a plugin.
    """

    def __init__(
        self, message: str, *, channel: str = "", sender: str = "redis", topic: str | None = None
    ) -> None:
        self.channel = channel
        """The full name on Redis, for example ``from:system:bound-box``."""
        self.sender = sender
        """The origin of the message: "client", "server" or "redis"."""
        self.topic = topic
        """The topic, if the name is that of one."""
        super().__init__(message)


class Refused(RequestError):
    """The client is not allowed to do this; ``reason`` is sent to it.

    An ``authorize`` function raises it, or the channels' policy does.
    """

    def __init__(self, reason: str, response: Any = None) -> None:
        self.reason = reason
        self.response = response
        """The whole response of an error reply, where the client library raises this."""
        super().__init__(reason)


class BrokerUnavailable(TangramError):
    """Redis is away, or did not answer within the limit; a later attempt may succeed."""


class BrokerRefused(BrokerUnavailable):
    """Redis refused a command, for example to this account; a later attempt fails as well."""


class SupervisionError(TangramError):
    """The base class of the supervision tree's exceptions."""


class SpecError(SupervisionError):
    """A child or a supervisor is specified wrongly."""


class StartFailed(SupervisionError):
    """A child did not start. ``child`` names it; the cause is attached with ``from``."""

    def __init__(self, child: str, message: str) -> None:
        self.child = child
        super().__init__(message)


class StartTimeout(SupervisionError):
    """A child did not call ``task_status.started()`` within its ``start_timeout``."""


class RestartsExhausted(SupervisionError):
    """More restarts than the window allows. ``crashes`` lists the last ones, oldest first."""

    def __init__(self, message: str, crashes: Sequence[str] = ()) -> None:
        self.crashes = tuple(crashes)
        super().__init__(message)


class ChildReturned(SupervisionError):
    """A permanent child returned, which counts as a crash."""


class ChildStubborn(SupervisionError):
    """A child does not end although it was cancelled; it is not started a second time."""


class WorkerEnded(SupervisionError):
    """A worker process ended although it was not asked to."""


class NoSuchChild(SupervisionError):
    """The supervisor has no child of that name."""


class ChannelClosed(TangramError):
    """The channel or its socket is closed; ``code`` is the WebSocket's close code, if any."""

    def __init__(self, message: str, *, code: int | None = None) -> None:
        self.code = code
        super().__init__(message)
