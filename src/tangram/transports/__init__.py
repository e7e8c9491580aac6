"""Sockets that carry channels and HTTP."""
