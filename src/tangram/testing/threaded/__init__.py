"""Use a server on a Trio loop in another thread from synchronous, asyncio and anyio tests."""
