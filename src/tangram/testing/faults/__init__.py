"""Faults by name, and scenarios that are struck at every step."""
