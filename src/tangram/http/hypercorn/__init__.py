"""Hypercorn as an engine: contained, bounded, and serving channels as part of the Quart application."""
