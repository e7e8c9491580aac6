from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tangram.routing.paths import PathTree, decode_path, parse_path


def tree_of(*routes: tuple[str, str]) -> PathTree[str]:
    tree: PathTree[str] = PathTree()
    for method, path in routes:
        tree.leaf(parse_path(path))[method] = path
    return tree


TREE = tree_of(
    ("GET", "/"),
    ("GET", "/users/me"),
    ("GET", "/users/{id}"),
    ("DELETE", "/users/{id}"),
    ("GET", "/users/{id}/posts/{post}"),
    ("GET", "/tiles/{z}/{x}.pbf"),
    ("GET", "/tiles/{z}/{name}"),
    ("GET", "/files/{rest:path}"),
    ("GET", "/files/index"),
    ("POST", "/slash/"),
    ("GET", "/me/{a}/x"),
    ("GET", "/{b}/c/x"),
)


@pytest.mark.parametrize(
    ("method", "path", "found", "values"),
    [
        ("GET", "/", "/", ()),
        ("HEAD", "/", "/", ()),
        ("GET", "/users/me", "/users/me", ()),
        ("GET", "/users/you", "/users/{id}", ("you",)),
        ("DELETE", "/users/me", "/users/{id}", ("me",)),
        ("HEAD", "/users/7", "/users/{id}", ("7",)),
        ("GET", "/users/7/posts/8", "/users/{id}/posts/{post}", ("7", "8")),
        ("GET", "/tiles/3/4.pbf", "/tiles/{z}/{name}", ("3", "4.pbf")),
        ("GET", "/files/a/b", "/files/{rest:path}", ("a/b",)),
        ("GET", "/files/", "/files/{rest:path}", ("",)),
        ("GET", "/files/index", "/files/index", ()),
        ("POST", "/slash/", "/slash/", ()),
        ("GET", "/me/c/x", "/me/{a}/x", ("c",)),
        ("GET", "/you/c/x", "/{b}/c/x", ("you",)),
    ],
)
def test_find(method: str, path: str, found: str, values: tuple[str, ...]) -> None:
    """Static segments come before names, and a branch that leads nowhere is left for the next."""
    match = TREE.find(method, path)

    assert match is not None
    assert (match.value, match.values) == (found, values)


@pytest.mark.parametrize("path", ["/users", "/users/", "/users//posts/1", "/slash", "/nothing", "//"])
def test_nothing_there(path: str) -> None:
    """A path that no route has is told apart from one that has other methods."""
    assert TREE.find("GET", path) is None


def test_other_methods() -> None:
    """A path with other methods only says which, over all routes that have the path; GET brings HEAD."""
    match = TREE.find("PUT", "/users/me")

    assert match is not None
    assert match.value is None
    assert match.allowed == frozenset({"GET", "HEAD", "DELETE"})


def test_mixed_segments() -> None:
    """Text and names may share a segment; dots in the text are dots."""
    tree = tree_of(("GET", "/{z}-{x}.pbf"))
    match = tree.find("GET", "/1-2-3.pbf")

    assert match is not None
    assert match.values == ("1", "2-3")
    assert tree.find("GET", "/1-2xpbf") is None


def test_encoded_slashes_do_not_separate() -> None:
    """Segments are told apart before they are decoded; what is no UTF-8 is no path."""
    assert decode_path(b"/a%2Fb/%C3%A9?x=%2F") == ["a/b", "é"]
    assert decode_path(b"/%ff") is None


@pytest.mark.slow
@given(st.lists(st.text(max_size=8), min_size=1, max_size=6), st.sampled_from(["GET", "PUT", "HEAD"]))
def test_any_path_is_looked_up(segments: list[str], method: str) -> None:
    """No path makes the search fail, and what it finds has a value for each name."""
    match = TREE.find(method, "/" + "/".join(segments))

    if match is not None and match.value is not None:
        assert len(match.values) == match.value.count("{")


def test_shape_and_display() -> None:
    """Two paths of one shape answer the same requests; OpenAPI sees no converters."""
    assert parse_path("/a/{b}").shape == parse_path("/a/{c}").shape != parse_path("/a/{c:path}").shape
    assert parse_path("/a/{b:path}").display == "/a/{b}"
