"""The operator's routes about nodes: list them, and move a plugin to another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tangram.console.access import OperatorAccess
from tangram.errors import BrokerUnavailable, NoSuchChild, PluginError
from tangram.routing import APIRouter, HTTPException, JSONResponse, Request

__all__ = ["NodeControl", "add_node_routes"]


class NodeControl(Protocol):
    """The nodes, as the operator's routes see them."""

    def nodes(self) -> Sequence[Mapping[str, Any]]:
        """Return each node that is alive, as plain values; none on a server that is alone."""
        ...

    async def move_plugin(self, name: str, to: str) -> Mapping[str, Any]:
        """Move a placed plugin to another node, and return where it was and where it is.

        Raises:
            NoSuchChild: No placed plugin has this name.
            PluginError: It cannot be moved.
            BrokerUnavailable: Redis is away.
        """
        ...


def add_node_routes(router: APIRouter, control: NodeControl, access: OperatorAccess) -> APIRouter:
    """Add the routes to the operator's router, and return it."""

    @router.get("/nodes", summary="The nodes", responses={401: {"description": "The token is needed"}})
    async def nodes(request: Request) -> JSONResponse:
        """Return the nodes of the cluster with their plugins; none on a server that is alone."""
        access.require_read(request)
        return JSONResponse(list(control.nodes()), headers={"cache-control": "no-store"})

    @router.post(
        "/plugins/{name}/move",
        summary="Move a plugin to another node",
        responses={
            401: {"description": "The operator's token is needed"},
            404: {"description": "No plugin of that name runs on one node at a time"},
            409: {"description": "No other node can take it"},
            503: {"description": "Redis is away"},
        },
    )
    async def move(name: str, request: Request, to: str = "") -> JSONResponse:
        """Stop a placed plugin where it runs, and start it on another node, or on the node ``to``."""
        access.require_token(request)
        try:
            moved = await control.move_plugin(name, to)
        except NoSuchChild as error:
            raise HTTPException(404, str(error)) from None
        except PluginError as error:
            raise HTTPException(409, str(error)) from None
        except BrokerUnavailable as error:
            raise HTTPException(503, str(error), {"retry-after": "1"}) from None
        return JSONResponse(dict(moved), headers={"cache-control": "no-store"})

    return router
