"""Requests for plugins that run on another node, and the listener that takes them.

- ``rules``: the decisions, without I/O
- ``keys``: the proof that a request comes from a node, without I/O
- ``heads``: heads of requests and answers between nodes, without I/O
- ``pool``: connections to the other nodes
- ``exchange``: one forwarded request
- ``websocket``: one forwarded WebSocket
- ``forwarder``: the way of a request for a placed plugin
- ``pushes``: declared pushes
- ``receiver``: the application of the internal listener
"""
