import structlog
import trio
from trio.testing import MockClock

from tangram.broker.external import ExternalBroker
from tangram.broker.urls import local_url

from .fakes import FakeRedis, healthy


async def until(condition: object) -> None:
    assert callable(condition)
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.05)


async def test_goes_and_comes_back(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    """It reports at once, tells when Redis is found, lost and back, and never ends by itself."""
    changes: list[bool] = []
    with trio.socket.socket() as sock:
        await sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    broker = ExternalBroker(f"redis://:hunter2@127.0.0.1:{port}", on_change=changes.append)
    with structlog.testing.capture_logs() as logs:
        url = await nursery.start(broker.run)
        assert url == f"redis://:hunter2@127.0.0.1:{port}"
        await until(lambda: broker.statistics().last_error)
        assert not broker.statistics().up

        for _ in range(2):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as redis:
                    await redis.start(FakeRedis().run, port)
                    await until(lambda: broker.statistics().up)
                    assert broker.statistics().version == "valkey 9.9"
                    scope.cancel()
            await until(lambda: not broker.statistics().up)

    assert changes == [True, False, True, False]
    assert broker.statistics().starts == 2
    events = [entry["event"] for entry in logs]
    assert events == ["redis is away", "redis is there", "redis is away", "redis is there", "redis is away"]
    assert logs[0]["cause"].endswith("connection refused")
    assert "hunter2" not in repr(logs) + repr(broker.statistics())
    nursery.cancel_scope.cancel()


async def test_long_absence_is_told_now_and_then(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    """While Redis stays away one line a minute reminds of it."""
    with trio.socket.socket() as sock:
        await sock.bind(("127.0.0.1", 0))
        broker = ExternalBroker(local_url(sock.getsockname()[1]))
        with structlog.testing.capture_logs() as logs:
            await nursery.start(broker.run)
            await trio.sleep(200)

    assert [entry["event"] for entry in logs] == ["redis is away", *["redis is still away"] * 3]
    nursery.cancel_scope.cancel()


async def test_hanging_redis_is_away(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    """A Redis that keeps the connection and stops answering is found by the pings."""
    hangs = False
    redis = FakeRedis(lambda words: b"" if hangs else healthy(words))
    port = await nursery.start(redis.run)
    broker = ExternalBroker(local_url(port))
    await nursery.start(broker.run)
    await until(lambda: broker.statistics().up)

    hangs = True
    await until(lambda: not broker.statistics().up)

    assert broker.statistics().last_error == "no answer within 2 s"
    nursery.cancel_scope.cancel()
