"""Sockets that carry HTTP and channels: listeners, the native engine, Hypercorn contained, and sessions."""
