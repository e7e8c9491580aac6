"""Start servers under test: whole, in part, or as a process."""
