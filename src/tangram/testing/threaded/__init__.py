"""Use a server that runs on a Trio loop in another thread from sync and asyncio tests."""
