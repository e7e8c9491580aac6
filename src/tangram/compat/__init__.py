"""Run plugins written for ``tangram_core`` (asyncio, FastAPI, pydantic) unchanged.

``names`` answers their imports with the modules in ``core`` and ``bare``. ``island`` is the asyncio loop
that such a plugin runs on, ``host`` its child in the supervision tree, and ``apps`` serves its routes.

Nothing in here is imported unless such a plugin is enabled, or a program asks for it.
"""

from __future__ import annotations

from tangram.compat.names import answer_imports

__all__ = ["answer_imports"]
