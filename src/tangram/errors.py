"""Every exception of tangram, and who is to blame for each.

    TangramError
    |- OperatorError                  the person who configures or starts the server
    |  |- ConfigError                 a setting is wrong: every fault at once; exit status 2
    |  |- AddressError                an address cannot be listened on; exit status 1
    |  `- BrokerStartError            the embedded broker cannot be started; exit status 1
    |- PluginError                    the author of a plugin, or who installed it
    |  |- PluginNotFound              no installed plugin has that name
    |  |- PluginImportFailed          its module raised while it was imported
    |  |- NotAPlugin                  its entry point is something else than a Plugin
    |  |- PluginConfigError           its table in the configuration is wrong
    |  |- RouteError                  a route cannot be declared as written
    |  `- ServiceError                a service is used outside the place it belongs to
    |- RequestError                   the client that sent the request
    |  |- BadRequest                  a parameter or body is wrong: every fault at once; status 422
    |  `- Refused                     a plugin or the policy says no, with a reason; status 403
    |- BrokerUnavailable              the environment: Redis is away, or did not answer in time
    |  `- BrokerRefused                who set up the account: Redis is there, and says no
    |- SupervisionError               the supervision tree
    |  |- SpecError                   a child or supervisor is declared wrongly
    |  |- StartFailed                 a child did not start; its cause is attached
    |  |- StartTimeout                a child did not report its start within its limit
    |  |- RestartsExhausted           more restarts than the window allows; the last crashes are attached
    |  |- ChildReturned               a permanent child returned, which counts as a crash
    |  |- ChildStubborn               a child goes on after its stop, past every limit
    |  `- NoSuchChild                 a child is named that is not there
    `- ChannelClosed                  the client library: the channel or its socket is closed

Anything else that escapes is a bug of ours. Messages are lower-case, end without a full stop, show the
offending value with ``!r``, and say what was expected and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = [
    "AddressError",
    "BadRequest",
    "BrokerRefused",
    "BrokerStartError",
    "BrokerUnavailable",
    "ChannelClosed",
    "ChildReturned",
    "ChildStubborn",
    "ConfigError",
    "Fault",
    "NoSuchChild",
    "NotAPlugin",
    "OperatorError",
    "PluginConfigError",
    "PluginError",
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
]


class Fault(NamedTuple):
    """One thing that is wrong, and where: printed as ``what @ path``."""

    what: str
    """What is wrong and what was expected: lower-case, no full stop."""
    path: str
    """Where: ``server.port``, ``body.items[2].name``, ``query.limit``."""
    kind: str = "value_error"
    """A stable word for programs: ``missing``, ``int_parsing``, ``unknown_key``."""

    def __str__(self) -> str:
        return f"{self.what} @ {self.path}"


class TangramError(Exception):
    """Base of everything that tangram raises on purpose."""


class OperatorError(TangramError):
    """The operator can mend it: told in one line, never with a traceback."""

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
    """The configuration is wrong. ``faults`` holds every fault, ``about`` the file."""

    exit_status = 2


class AddressError(OperatorError):
    """An address cannot be listened on: taken, forbidden, or not one of this machine."""


class BrokerStartError(OperatorError):
    """The embedded broker cannot be started: no binary, no free port, or it ended at once."""


class PluginError(TangramError):
    """A plugin is wrong; ``plugin`` names it. The others go on without it."""

    def __init__(self, message: str, *, plugin: str = "") -> None:
        self.plugin = plugin
        super().__init__(message)


class PluginNotFound(PluginError):
    """No installed plugin has that name."""


class PluginImportFailed(PluginError):
    """The plugin's module raised while it was imported; the cause is attached."""


class NotAPlugin(PluginError):
    """The entry point is something else than a ``tangram.Plugin``."""


class PluginConfigError(_Faulty, PluginError):
    """The plugin's table in the configuration does not fit its ``config_class``."""

    def __init__(self, faults: Sequence[Fault], *, plugin: str) -> None:
        self.plugin = plugin
        _Faulty.__init__(self, faults, about=f"configuration of plugin {plugin!r}")


class RouteError(PluginError):
    """A route cannot be declared as written: at import time, so that it is seen at once."""


class ServiceError(PluginError):
    """A part that belongs into a plugin's service was used elsewhere."""


class RequestError(TangramError):
    """The client's request cannot be answered as it was sent."""


class BadRequest(_Faulty, RequestError):
    """Parameters or body do not fit the route: answered with status 422 and all faults."""


class Refused(RequestError):
    """Not allowed; raised by an ``authorize`` function, or by the policy. ``reason`` goes to the client."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class BrokerUnavailable(TangramError):
    """Redis is away, or did not answer within the limit: try again later."""


class BrokerRefused(BrokerUnavailable):
    """Redis is there and says no, to this account for one: trying again changes nothing."""


class SupervisionError(TangramError):
    """Base of what the supervision tree raises."""


class SpecError(SupervisionError):
    """A child or a supervisor is declared wrongly."""


class StartFailed(SupervisionError):
    """A child did not start. ``child`` names it; the cause is attached with ``from``."""

    def __init__(self, child: str, message: str) -> None:
        self.child = child
        super().__init__(message)


class StartTimeout(SupervisionError):
    """A child did not call ``task_status.started()`` within its ``start_timeout``."""


class RestartsExhausted(SupervisionError):
    """More restarts than the intensity allows. ``crashes`` tells the last ones, oldest first."""

    def __init__(self, message: str, crashes: Sequence[str] = ()) -> None:
        self.crashes = tuple(crashes)
        super().__init__(message)


class ChildReturned(SupervisionError):
    """A permanent child returned, which its restart type counts as a crash."""


class ChildStubborn(SupervisionError):
    """A child does not end although it was cancelled; no second incarnation is started beside it."""


class NoSuchChild(SupervisionError):
    """The supervisor has no child of that name."""


class ChannelClosed(TangramError):
    """The channel or its socket is closed; ``code`` is the WebSocket's close code, if there is one."""

    def __init__(self, message: str, *, code: int | None = None) -> None:
        self.code = code
        super().__init__(message)
