"""Existing plugins wait while Redis is away, and go on when it comes back."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import Any

import pytest
import trio

from tangram.compat.plugin import Plugin
from tangram.compat.state import BackendState
from tangram.testing import open_broker, open_tangram

pytestmark = pytest.mark.slow


async def test_an_external_redis_goes_and_comes_back() -> None:
    """A service that fails during an outage has not crashed, and starts again after it.

    A Subscriber connects again by itself.
    """
    subscriber_class = import_module("tangram_core.redis").Subscriber
    listening, publishing = Plugin(), Plugin()
    listening.name, publishing.name = "listening", "publishing"
    received: list[str] = []

    class Hearing(subscriber_class):  # type: ignore[misc, valid-type]
        async def message_handler(self, event: str, payload: str, pattern: str, state: Any) -> None:
            received.append(payload)
            if payload == "bad":
                raise LookupError(payload)

    @listening.register_service()
    async def listen(state: BackendState) -> None:
        subscriber = Hearing("hearing", state.config.core.redis_url, ["from:x:*"], None)
        await subscriber.subscribe()
        try:
            await asyncio.Future()
        finally:
            await subscriber.cleanup()

    @publishing.register_service()
    async def publish(state: BackendState) -> None:
        while True:
            await state.redis_client.publish("from:x:y", "beat")
            await asyncio.sleep(0.01)

    async def beats(tangram: Any) -> None:
        received.clear()
        with trio.fail_after(60):
            while received.count("beat") < 3:
                await tangram.http.get("/-/healthz")

    with open_broker() as broker:
        async with open_tangram([listening, publishing], {"core": {"redis_url": broker.url}}) as tangram:
            await beats(tangram)
            tree = tangram.server.tree
            assert tree is not None
            await tree.incarnation.publish("from:x:y", "bad")
            await tree.incarnation.publish("from:x:y", b"\xff")
            await beats(tangram)
            broker.kill()
            with trio.fail_after(60):
                while "publishing" not in tree.redis_outage.waiting:
                    await tangram.http.get("/-/healthz")
            broker.start()
            await beats(tangram)
            crashes = [event.child for event in tangram.events if event.kind == "crashed"]

            assert "plugin:publishing" not in crashes
            assert "plugin:listening" not in crashes
            assert (await tangram.http.get("/-/readyz")).status_code == 200
