"""Sockets that carry HTTP and channels: the listeners, the native engine, and Hypercorn contained."""
