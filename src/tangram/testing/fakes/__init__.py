"""Fakes of the outside: a Redis in memory, streams, a web port, the way to Redis."""
