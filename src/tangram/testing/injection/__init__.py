"""Places where a fault enters a running server: a child, or an operation of the bus."""
