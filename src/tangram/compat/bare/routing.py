"""The module ``fastapi.routing``: tangram's router, with the parameters of FastAPI's.

Parameters that tangram cannot honour are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from tangram import routing
from tangram.errors import RouteError

__all__ = ["APIRouter"]

F = TypeVar("F", bound=Callable[..., Any])


class APIRouter(routing.APIRouter):
    """A set of routes under one prefix, declared with FastAPI's parameters."""

    def __init__(
        self,
        *,
        prefix: str = "",
        tags: Sequence[Any] | None = None,
        dependencies: Sequence[Any] | None = None,
        default_response_class: type[routing.Response] | None = None,
        include_in_schema: bool = True,
        responses: dict[int | str, Any] | None = None,
        redirect_slashes: bool = True,  # noqa: ARG002 - a missing slash is always redirected
        **more: Any,
    ) -> None:
        _refuse(more, "APIRouter")
        super().__init__(
            prefix,
            tags=[str(getattr(tag, "value", tag)) for tag in tags or ()],
            dependencies=dependencies or (),
            include_in_schema=include_in_schema,
        )
        self._response_class = default_response_class
        self._responses = dict(responses or {})

    def add_api_route(
        self,
        path: str,
        endpoint: Callable[..., Any],
        *,
        methods: Sequence[str] | None = ("GET",),
        **settings: Any,
    ) -> None:
        """Add a route, as ``fastapi.APIRouter.add_api_route`` does.

        Raises:
            RouteError: a setting is not supported without FastAPI.
        """
        settings = {key: value for key, value in settings.items() if value is not None and value is not False}
        if "include_in_schema" not in settings:
            settings["include_in_schema"] = True
        _refuse({key: value for key, value in settings.items() if key not in _KNOWN}, f"the route {path!r}")
        if "response_class" not in settings and self._response_class is not None:
            settings["response_class"] = self._response_class
        settings["responses"] = {**self._responses, **settings.get("responses", {})}
        settings["tags"] = [str(getattr(tag, "value", tag)) for tag in settings.get("tags", ())]
        super().add_api_route(path, endpoint, methods=tuple(methods or ("GET",)), **settings)

    def websocket(self, path: str, **_more: Any) -> Callable[[F], F]:
        """Refuse a WebSocket route, which only FastAPI serves on the island.

        Raises:
            RouteError: always.
        """
        raise RouteError(f"the WebSocket route {path!r} needs FastAPI: pip install fastapi")

    def mount(self, path: str, *_more: Any, **_settings: Any) -> None:
        """Refuse a mounted application, which only FastAPI serves on the island.

        Raises:
            RouteError: always.
        """
        raise RouteError(f"the application mounted at {path!r} needs FastAPI: pip install fastapi")


_KNOWN: Final = frozenset(routing.router.RouteSettings.__annotations__)


def _refuse(more: dict[str, Any], where: str) -> None:
    unknown = sorted(key for key, value in more.items() if value)
    if unknown:
        raise RouteError(
            f"{where} asks for {', '.join(unknown)}, which tangram does not do "
            "where FastAPI is not installed: pip install fastapi"
        )
