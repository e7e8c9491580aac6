"""A socket as a stream."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator

import pytest
import trio
import trio.testing

from tangram.bus import sockets
from tangram.bus.sockets import PlainStream


@pytest.fixture
async def pair() -> AsyncGenerator[tuple[PlainStream, trio.SocketStream]]:
    """Return a connected stream and the other end's socket."""
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port = listener.socket.getsockname()[1]
    near = await trio.open_tcp_stream("127.0.0.1", port)
    far = await listener.accept()
    stream = PlainStream(near)
    yield stream, far
    await trio.aclose_forcefully(stream)
    await trio.aclose_forcefully(far)
    await trio.aclose_forcefully(listener)


Pair = tuple[PlainStream, trio.SocketStream]


async def test_bytes_go_both_ways(pair: Pair) -> None:
    """Sent bytes arrive, reads return at most the requested number, and the end is empty."""
    stream, far = pair
    await stream.send_all(b"ping")
    assert await far.receive_some(10) == b"ping"
    await far.send_all(b"pong")
    assert await stream.receive_some(3) == b"pon"
    assert await stream.receive_some() == b"g"
    await far.aclose()
    assert await stream.receive_some(10) == b""


async def test_a_write_larger_than_the_buffers_waits_for_the_reader(pair: Pair) -> None:
    """All bytes arrive in order."""
    stream, far = pair
    data = bytes(range(256)) * 40_000
    got = bytearray()

    async def read() -> None:
        while len(got) < len(data):
            got.extend(await far.receive_some(100_000))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, data)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(read)

    assert got == data


async def test_a_close_wakes_waiting_tasks(pair: Pair) -> None:
    """Reads and writes raise ``ClosedResourceError`` at the close, and afterwards."""
    stream, _ = pair
    ended: list[str] = []

    async def expect(name: str, call: object, *args: object) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await call(*args)  # type: ignore[operator]
        ended.append(name)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect, "read", stream.receive_some, 10)
            nursery.start_soon(expect, "write", stream.send_all, b"x" * 20_000_000)
            await trio.testing.wait_all_tasks_blocked()
            await stream.aclose()
    await expect("read again", stream.receive_some, 10)
    await expect("write again", stream.send_all, b"x")
    await expect("wait", stream.wait_send_all_might_not_block)
    await stream.aclose()

    assert sorted(ended) == ["read", "read again", "wait", "write", "write again"]


async def test_a_reset_raises_broken_resource_error(pair: Pair) -> None:
    """This holds for reads and for writes."""
    stream, far = pair
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    await trio.aclose_forcefully(far)
    with pytest.raises(trio.BrokenResourceError):
        await stream.receive_some(10)
    with pytest.raises(trio.BrokenResourceError):
        await stream.send_all(b"x")


async def test_full_reads_follow_each_other_without_waiting(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large message costs few passes of the scheduler, and other tasks still get their turn."""
    stream, far = pair
    waits = 0

    async def counting(sock: socket.socket) -> None:
        nonlocal waits
        waits += 1
        await trio.lowlevel.wait_readable(sock)

    monkeypatch.setattr(sockets, "_wait_readable", counting)
    await far.send_all(b"x" * 2000)
    assert [len(await stream.receive_some(100)) for _ in range(20)] == [100] * 20
    assert waits == 3  # MAX_AT_ONCE is 8
    with trio.move_on_after(0.01):
        await stream.receive_some(100)
    await far.send_all(b"y")
    assert await stream.receive_some(100) == b"y"


async def test_a_large_message_is_read_into_a_buffer(pair: Pair) -> None:
    """It arrives whole, also where it is larger than the buffers of the kernel."""
    stream, far = pair
    data = bytes(range(256)) * 4096
    buffer = bytearray(4 * sockets.READ_SIZE)
    got = b""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(far.send_all, data)
            while len(got) < len(data):
                got += buffer[: await stream.receive_into(buffer)]

    assert got == data


class Readings:
    """A socket with reads of given sizes, which notes how much each read may take."""

    def __init__(self, *sizes: int) -> None:
        self.sizes = list(sizes)
        self.asked: list[int] = []

    def recv_into(self, _buffer: bytearray, size: int) -> int:
        self.asked.append(size)
        return self.sizes.pop(0)

    def close(self) -> None: ...


async def test_a_full_read_into_a_buffer_is_followed_by_one_of_the_whole_buffer(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second read does not wait, and the third one does."""
    stream, _ = pair
    some = sockets.READ_SIZE
    fake = Readings(some, 5 * some, some, 10, 20)
    waits: list[int] = []

    async def wait(_socket: object) -> None:
        waits.append(len(fake.asked))

    monkeypatch.setattr(sockets, "_wait_readable", wait)
    with monkeypatch.context() as inner:
        inner.setattr(stream, "_socket", fake)
        sizes = [await stream.receive_into(bytearray(8 * some)) for _ in range(5)]

    assert sizes == [some, 5 * some, some, 10, 20]
    assert fake.asked == [some, 0, some, 0, some]
    assert waits == [0, 2, 4]


async def test_a_read_into_a_buffer_waits_after_a_full_one_that_took_everything(pair: Pair) -> None:
    """It gets the next bytes, and ``ClosedResourceError`` after the close."""
    stream, far = pair
    buffer = bytearray(100_000)
    await far.send_all(b"x" * sockets.READ_SIZE)
    with trio.fail_after(10):
        taken = await stream.receive_into(buffer)
        while taken < sockets.READ_SIZE:
            taken += await stream.receive_into(buffer)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(far.send_all, b"more")

            assert await stream.receive_into(buffer) == 4
        assert buffer[:4] == b"more"
    await stream.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await stream.receive_into(buffer)


async def test_a_look_returns_the_bytes_that_have_arrived(pair: Pair) -> None:
    """It does not wait, also beside a task that does, and tells nothing from the end."""
    stream, far = pair
    got: list[bytes] = []

    async def read() -> None:
        got.append(await stream.receive_some())

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            before = stream.receive_nowait()
            await far.send_all(b"one")
            while (looked := stream.receive_nowait()) is None and not got:
                await trio.lowlevel.checkpoint()
            await far.send_all(b"two")
            await far.aclose()

    assert before is None
    assert [looked or b"", *got] in ([b"one", b"two"], [b"", b"one"])
    with trio.fail_after(10):
        while stream.receive_nowait() != b"":
            await trio.lowlevel.checkpoint()
    await stream.aclose()
    with pytest.raises(trio.ClosedResourceError):
        stream.receive_nowait()


async def test_a_write_at_once_takes_as_much_as_the_socket(pair: Pair) -> None:
    """The rest is the caller's, and a broken connection takes nothing."""
    stream, far = pair
    data = b"x" * 20_000_000
    sent = stream.send_nowait(data)
    while stream.send_nowait(data):
        pass  # the kernel moves bytes to the other end meanwhile
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    await trio.aclose_forcefully(far)

    assert 0 < sent < len(data)
    with pytest.raises(trio.BrokenResourceError):
        stream.receive_nowait()
    assert stream.send_nowait(b"y") == 0
