"""Record a run and check that the invariants held."""
