"""The module ``fastapi.exceptions``."""

from tangram.routing import HTTPException
from tangram.routing import InvalidRequest as RequestValidationError

__all__ = ["HTTPException", "RequestValidationError"]
