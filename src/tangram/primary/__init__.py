"""Find the primary of Redis by its sentinels, or by the nodes of its cluster."""
