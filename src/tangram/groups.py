"""Look below the exception groups in which nurseries wrap the errors of their tasks."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["all_leaves_are", "first_leaf", "leaves", "unwrap_single"]


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions in nested groups in order; an exception alone yields itself."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def first_leaf(error: BaseException) -> BaseException:
    """Return the first exception in nested groups, or the exception itself."""
    return next(leaves(error))


def all_leaves_are(error: BaseException, *kinds: type[BaseException]) -> bool:
    """Return whether every exception in nested groups is an instance of one of the kinds."""
    return all(isinstance(leaf, kinds) for leaf in leaves(error))


def unwrap_single(error: BaseException) -> BaseException:
    """Return the one exception in groups of one; a group of several is returned as it is.

    For example, ``ExceptionGroup("", [ExceptionGroup("", [KeyError("x")])])`` gives ``KeyError("x")``.
    """
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
