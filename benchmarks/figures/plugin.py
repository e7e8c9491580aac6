"""The plugin that the benchmarks run: it publishes, answers, and is crashed from outside."""

from __future__ import annotations

from contextlib import suppress

import trio

import tangram


def make_plugin(*, beat: float = 0.01, name: str = "bench", uses_redis: bool = False) -> tangram.Plugin:
    """Return a plugin that publishes ``to:bench:beat`` and answers ``/bench/value``.

    Args:
        beat: seconds between two messages.
        uses_redis: it also sends other commands, which open an asyncio loop in each incarnation.
    """
    router = tangram.APIRouter(prefix=f"/{name}")
    plugin = tangram.Plugin(routers=[router])
    plugin.name = name

    @router.get("/value")
    async def value() -> dict[str, int]:
        return {"value": 42}

    @plugin.register_service()
    async def publish(state: tangram.BackendState) -> None:
        number = 0
        while True:
            number += 1
            with suppress(tangram.BrokerUnavailable):
                await state.redis_client.publish(f"to:{name}:beat", b'{"n":%d}' % number)
            await trio.sleep(beat)

    if uses_redis:

        @plugin.register_service()
        async def remember(state: tangram.BackendState) -> None:
            await state.redis_client.set("bench:born", "yes")
            await trio.sleep_forever()

    return plugin
