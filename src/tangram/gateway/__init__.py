"""The channels child of an incarnation, and its connections.

``channels`` owns the hub and all connections; ``session`` is one connection for a transport; ``websocket``
serves a connection over any WebSocket, ``pump`` over a socket of the native engine; ``tokens`` is the route.
"""
