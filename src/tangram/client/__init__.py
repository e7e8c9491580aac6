"""A client of Phoenix channels on Trio, for programs, the command line and tests.

    token = await fetch_token("http://127.0.0.1:2346", "system")
    async with open_socket("http://127.0.0.1:2346") as socket:
        channel = await socket.join("system", token=token.token)
        await channel.push("my-plugin-command", {"speed": 3})
        async for event in channel:
            print(event.name, event.payload)

The socket reconnects by itself, with back-off and jitter, and joins its channels again. Messages published
meanwhile are lost, as they are for every browser.
"""

from tangram.client.channel import Channel, Event
from tangram.client.socket import ClientSocket, open_socket
from tangram.client.token import Token, fetch_token
from tangram.client.typed import TypedChannel, TypedEvents, typed

__all__ = [
    "Channel",
    "ClientSocket",
    "Event",
    "Token",
    "TypedChannel",
    "TypedEvents",
    "fetch_token",
    "open_socket",
    "typed",
]
