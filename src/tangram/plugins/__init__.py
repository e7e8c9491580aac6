"""What a plugin is, how it is found and loaded, and how its life is hosted."""
