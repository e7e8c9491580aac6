"""Records of a run, and the invariants that must hold of them."""
