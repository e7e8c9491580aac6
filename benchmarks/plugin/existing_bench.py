"""The routes of ``fastapi_app`` as an existing plugin, written for ``tangram_core``."""

from __future__ import annotations

import tangram_core  # type: ignore[import-not-found]  # answered by each server
from fastapi_app import router  # type: ignore[import-not-found]  # beside this file

plugin = tangram_core.Plugin(routers=[router])
