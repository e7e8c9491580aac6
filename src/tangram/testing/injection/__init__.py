"""Places where a fault enters a running server: a child of its tree, or an operation of the bus."""
