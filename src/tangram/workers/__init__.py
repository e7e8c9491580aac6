"""Several server processes below a small parent process (``[server] workers``).

The parent holds the listening sockets and the embedded broker, and supervises the workers. A worker is the
ordinary server, with sockets, configuration and broker from its parent. ``rules`` holds the decisions,
without I/O; ``parent`` and ``place`` carry them out.
"""
