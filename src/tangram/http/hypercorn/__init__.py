"""The Hypercorn engine: TLS, HTTP/2 and HTTP/1.1, with bounds on each client."""
