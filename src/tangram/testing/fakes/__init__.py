"""Fakes: a broker, streams and a web port in memory, and the route to Redis."""
