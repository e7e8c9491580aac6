"""HTTP engines on held sockets: the native one and Hypercorn."""
