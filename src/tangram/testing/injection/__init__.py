"""Places where a fault can enter: a child, an operation of the bus."""
