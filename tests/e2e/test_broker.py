"""The broker crashes or is unreachable: the server logs it, and messages flow again."""

from __future__ import annotations

import signal

from tangram.testing import open_broker
from tests.e2e.browser import Browser
from tests.e2e.harness import Home, free_port, open_process, open_server, wait_until
from tests.e2e.phoenix import open_client


async def test_killed_broker_comes_back(home: Home, browser: Browser) -> None:
    """A killed embedded broker is replaced at its address, and the browser receives again."""
    async with open_server(home, "tangram_e2e") as server:
        client = await open_client(browser, server.url)
        await client.join("e2e", "beat", "order", "heard")
        await client.wait_more("beat")
        url = (await server.get("/e2e/redis-url"))["url"]
        old = server.broker()
        old.send_signal(signal.SIGKILL)
        await client.wait("last('beat')?.born > 1")
        await client.wait("channels.e2e.state === 'joined'")
        pushed = await client.push("e2e", "wave", {})
        await client.wait("last('heard')?.event === 'from:e2e:wave'")
        shown = await server.child("broker")

        assert pushed["status"] == "ok"
        assert (await server.get("/e2e/redis-url"))["url"] == url
        assert server.broker().pid != old.pid
        assert shown["restarts"] == 1
        assert client.page.errors == [] or all("WebSocket" in error for error in client.page.errors)


async def test_an_outage_of_an_external_redis_crashes_no_plugin(home: Home, browser: Browser) -> None:
    """During an outage routes answer, and pushes are refused; afterwards messages flow."""
    with open_broker() as redis:
        core = f'redis_url = "{redis.url}"'
        async with open_server(home, "tangram_e2e", core=core) as server:
            client = await open_client(browser, server.url)
            await client.join("e2e", "beat", "heard")
            await client.wait_more("beat")
            born = (await server.get("/e2e/ping"))["born"]
            redis.kill()
            await server.wait_line("redis.*away|away.*redis")
            answered = await server.get("/e2e/ping")
            pushed = await client.push("e2e", "wave", {})
            redis.start()
            await client.wait("channels.e2e.errors > 0")  # members are told that they missed something
            await client.wait("channels.e2e.state === 'joined'")
            await client.wait_more("beat")
            again = await client.push("e2e", "wave", {})
            after = await server.get("/e2e/ping")

    assert answered["born"] == after["born"] == born
    assert pushed["status"] == "error"
    assert again["status"] == "ok"


async def test_the_server_starts_without_its_external_redis(home: Home) -> None:
    """The server starts without Redis, logs address and cause, and is ready once it comes."""
    port = free_port()
    home.configure(["tangram_e2e"], core=f'redis_url = "redis://:sesame@127.0.0.1:{port}"')
    async with open_process(home) as server:
        await server.wait_line(f"127.0.0.1:{port}")

        async def pings() -> bool:
            return bool((await server.get("/e2e/ping"))["born"])

        await wait_until(pings)
        not_ready = await server.request("GET", "/-/readyz")

        assert not_ready.status_code == 503
        assert "sesame" not in server.log
        assert server.process.returncode is None
