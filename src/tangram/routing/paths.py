"""Parse the paths of routes, and find the route of a request in a trie.

The trie is built once and read by every request. In each segment a static text is tried first, then
``{name}``, then a text with names in it (``{tile}.pbf``), then ``{rest:path}``. A path that exists for other
methods only is reported as such (405), not as missing (404).
"""

from __future__ import annotations

import re
from typing import Final, Generic, NamedTuple, TypeVar
from urllib.parse import unquote_to_bytes

from tangram.errors import RouteError

__all__ = ["Found", "PathTemplate", "PathTree", "decode_path", "parse_path"]

T = TypeVar("T")

_NOTHING: Final[frozenset[str]] = frozenset()

_NAME: Final = re.compile(r"\{([^{}]*)\}")


class PathTemplate(NamedTuple):
    """A parsed path of a route."""

    path: str
    segments: tuple[tuple[str, str], ...]
    """Pairs of a kind and a text.

    The text of ``static`` is literal, the text of ``mixed`` is a regular expression, and the text of ``name``
    and ``rest`` is the parameter's name.
    """
    names: tuple[str, ...]
    """The path parameters, from left to right."""

    @property
    def shape(self) -> str:
        """The path without names: equal for paths that match the same requests."""
        return "/".join(
            text if kind in ("static", "mixed") else f"{{{kind}}}" for kind, text in self.segments
        )

    @property
    def display(self) -> str:
        """The path as OpenAPI writes it, without converters."""
        return _NAME.sub(lambda match: "{" + match[1].partition(":")[0] + "}", self.path)


def parse_path(path: str) -> PathTemplate:
    """Parse the path of a route.

    Raises:
        RouteError: the path is malformed.
    """
    if not path.startswith("/"):
        raise RouteError(f"expected a path that starts with '/', not {path!r}")
    parts = path[1:].split("/")
    names: list[str] = []
    segments = [_segment(part, path, names, last=i == len(parts) - 1) for i, part in enumerate(parts)]
    if len(set(names)) < len(names):
        raise RouteError(f"expected each name once in the path {path!r}")
    return PathTemplate(path, tuple(segments), tuple(names))


def _segment(part: str, path: str, names: list[str], *, last: bool) -> tuple[str, str]:
    found = list(_NAME.finditer(part))
    rest = _NAME.sub("", part)
    if "{" in rest or "}" in rest:
        raise RouteError(f"expected balanced braces in the path {path!r}")
    if not found:
        return "static", part
    for match in found:
        name, _, converter = match[1].partition(":")
        if not name.isidentifier() or converter not in ("", "str", "path"):
            raise RouteError(f"expected {{name}} or {{name:path}}, not {match[0]!r} in the path {path!r}")
        names.append(name)
        if converter == "path":
            if match[0] != part or not last:
                raise RouteError(f"expected {match[0]!r} to be the whole end of the path {path!r}")
            return "rest", name
    if len(found) == 1 and found[0][0] == part:
        return "name", names[-1]
    return "mixed", _pattern(_NAME.split(part)[::2])


def _pattern(texts: list[str]) -> str:
    """Return the regular expression for names with texts before, between and after them.

    Several path parameters in one segment are matched without backtracking. Each name takes as few characters
    as possible, up to the first occurrence of the text after it. A later occurrence is never needed, because
    the next name can take all characters between the two. The atomic group ``(?>...)`` therefore drops the
    other choices, and the search is linear in the length of the segment.
    """
    first, *between, last = map(re.escape, texts)
    return first + "".join(f"(?>(.+?){text})" for text in between) + "(.+?)" + last


class Found(NamedTuple, Generic[T]):
    """The value for the method, or None and the ``allowed`` methods of the path."""

    value: T | None
    values: tuple[str, ...]
    allowed: frozenset[str]


class _Node(Generic[T]):
    __slots__ = ("leaf", "mixed", "name", "rest", "static")

    def __init__(self) -> None:
        self.static: dict[str, _Node[T]] = {}
        self.name: _Node[T] | None = None
        self.mixed: dict[str, tuple[re.Pattern[str], _Node[T]]] = {}
        self.rest: dict[str, T] | None = None
        self.leaf: dict[str, T] = {}


class PathTree(Generic[T]):
    """A trie from paths to values by method."""

    def __init__(self) -> None:
        self._static: dict[str, dict[str, T]] = {}
        self._root: _Node[T] = _Node()

    def leaf(self, template: PathTemplate) -> dict[str, T]:
        """Return the dictionary from method to value at a path, for the caller to fill."""
        node = self._root
        for kind, text in template.segments:
            if kind == "rest":
                if node.rest is None:
                    node.rest = {}
                return node.rest
            node = self._child(node, kind, text)
        if not template.names:
            self._static["/" + "/".join(text for _, text in template.segments)] = node.leaf
        return node.leaf

    def _child(self, node: _Node[T], kind: str, text: str) -> _Node[T]:
        if kind == "static":
            return node.static.setdefault(text, _Node())
        if kind == "mixed":
            return node.mixed.setdefault(text, (re.compile(text, re.DOTALL), _Node()))[1]
        if node.name is None:
            node.name = _Node()
        return node.name

    def find(self, method: str, path: str, segments: list[str] | None = None) -> Found[T] | None:
        """Find the value for a method and path; HEAD finds that of GET.

        Args:
            method: in upper case.
            path: the decoded path.
            segments: the decoded segments, if a segment contains an encoded slash.
        """
        if segments is None:
            here = self._static.get(path)
            if here is not None:
                value = here.get(method) or (here.get("GET") if method == "HEAD" else None)
                if value is not None:
                    return Found(value, (), _NOTHING)
            segments = path[1:].split("/")
        allowed: set[str] = set()
        node, at, values = _only_way(self._root, segments)
        if at == len(segments):
            found = _pick(node.leaf, values, method, allowed)
        else:
            found = self._walk(node, segments, at, values, method, allowed)
        if found is not None:
            return found
        return Found(None, (), frozenset(allowed)) if allowed else None

    def _walk(  # noqa: PLR0917 - a recursion on the hot path
        self,
        node: _Node[T],
        segments: list[str],
        at: int,
        values: tuple[str, ...],
        method: str,
        allowed: set[str],
    ) -> Found[T] | None:
        if at == len(segments):
            return _pick(node.leaf, values, method, allowed)
        segment = segments[at]
        child = node.static.get(segment)
        found = None
        if child is not None:
            found = self._walk(child, segments, at + 1, values, method, allowed)
        if found is None and node.name is not None and segment:
            found = self._walk(node.name, segments, at + 1, (*values, segment), method, allowed)
        if found is None:
            for pattern, below in node.mixed.values():
                match = pattern.fullmatch(segment)
                if match is not None:
                    found = self._walk(below, segments, at + 1, (*values, *match.groups()), method, allowed)
                    if found is not None:
                        break
        if found is None and node.rest is not None:
            found = _pick(node.rest, (*values, "/".join(segments[at:])), method, allowed)
        return found


def _only_way(node: _Node[T], segments: list[str]) -> tuple[_Node[T], int, tuple[str, ...]]:
    """Follow the first segments while one way at most leads on; return its end.

    There is nothing to come back to, so that most paths need no recursion.
    """
    at = 0
    values: tuple[str, ...] = ()
    for segment in segments:
        child = node.static.get(segment)
        if child is None:
            if node.name is None or not segment or node.mixed or node.rest is not None:
                break
            child = node.name
            values = (*values, segment)
        elif node.name is not None or node.mixed or node.rest is not None:
            break
        node = child
        at += 1
    return node, at, values


def _pick(leaf: dict[str, T], values: tuple[str, ...], method: str, allowed: set[str]) -> Found[T] | None:
    value = leaf.get(method) or (leaf.get("GET") if method == "HEAD" else None)
    if value is not None:
        return Found(value, values, _NOTHING)
    allowed.update(leaf)
    if "GET" in leaf:
        allowed.add("HEAD")
    return None


def decode_path(raw: bytes) -> list[str] | None:
    """Split a percent-encoded path and decode each segment; None if it is not UTF-8."""
    try:
        return [unquote_to_bytes(part).decode() for part in raw.split(b"?", 1)[0][1:].split(b"/")]
    except UnicodeDecodeError:
        return None
