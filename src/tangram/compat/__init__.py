"""Yesterday's plugins unchanged: what was written for ``tangram_core``, asyncio, FastAPI and pydantic.

``names`` answers the imports, ``core`` and ``bare`` are what they are answered with, ``island`` is the
asyncio loop that such a plugin lives on, ``host`` its place in the supervision tree, ``apps`` its routes.

Nothing in here is imported unless such a plugin is enabled, or a program asks for it.
"""

from __future__ import annotations

from tangram.compat.names import answer_imports

__all__ = ["answer_imports"]
