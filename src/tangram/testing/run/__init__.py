"""Run servers under test: whole, in part, or in a process of their own."""
