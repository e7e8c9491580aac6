"""A whole server with a broker on a private socket."""

from __future__ import annotations

import pytest
import trio

import tangram
from tangram.redis_url import parse_redis_url
from tangram.testing import open_tangram

pytestmark = pytest.mark.slow


async def test_plugins_work_with_a_private_broker() -> None:
    """Client, subscriber and bus find socket and password in the configuration."""
    plugin = tangram.Plugin()
    seen: list[tuple[str, str]] = []

    class Clicks(tangram.Subscriber[None]):
        async def message_handler(self, event: str, payload: str, pattern: str, state: None) -> None:
            seen.append((event, payload))

    @plugin.register_service()
    async def service(state: tangram.BackendState) -> None:
        async with Clicks("clicks", state.config.core.redis_url, ["from:demo:*"], None):
            await state.redis_client.set("key", "value")
            value = await state.redis_client.get("key")
            await state.publish("from:demo:click", value or b"")
            await trio.sleep_forever()

    async with open_tangram([plugin], {"broker": {"private": True}}) as running:
        tree = running.server.tree
        assert tree is not None
        address = parse_redis_url(tree.url)
        paths = ("/-/supervision", "/-/plugins", "/-/readyz", "/manifest.json")
        pages = [(await running.http.get(path)).text for path in paths]
        with trio.fail_after(30):
            while not seen:  # noqa: ASYNC110 - the plugin has no event
                await trio.sleep(0.01)

    assert address.path
    assert address.password
    assert address.password not in "".join(pages)
    assert seen == [("from:demo:click", "value")]
