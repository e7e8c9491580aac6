from __future__ import annotations

import re
import timeit

import pytest
from hypothesis import example, given
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
    """Static segments are tried before names, and a branch without a match is left."""
    match = TREE.find(method, path)

    assert match is not None
    assert (match.value, match.values) == (found, values)


@pytest.mark.parametrize("path", ["/users", "/users/", "/users//posts/1", "/slash", "/nothing", "//"])
def test_a_path_without_a_route_is_not_found(path: str) -> None:
    """A path without a route is not found, for any method."""
    assert TREE.find("GET", path) is None


def test_other_methods() -> None:
    """A path with other methods reports them, over all routes; GET includes HEAD."""
    match = TREE.find("PUT", "/users/me")

    assert match is not None
    assert match.value is None
    assert match.allowed == frozenset({"GET", "HEAD", "DELETE"})


def test_mixed_segments() -> None:
    """Text and names may share a segment; dots in the text are literal."""
    tree = tree_of(("GET", "/{z}-{x}.pbf"))
    match = tree.find("GET", "/1-2-3.pbf")

    assert match is not None
    assert match.values == ("1", "2-3")
    assert tree.find("GET", "/1-2xpbf") is None


@given(
    st.lists(st.text("ab.", max_size=2), min_size=3, max_size=5),
    st.lists(st.text("ab.\n", max_size=4), min_size=2, max_size=5),
)
@example(["", "ab", ""], ["a", "ab", "b"])
@example(["", "", "", ""], ["a", "b", "a"])
def test_names_in_one_segment_bind_as_in_an_exhaustive_search(texts: list[str], values: list[str]) -> None:
    """Matches and values equal the first result of an exhaustive search.

    Each name takes as few characters as possible, from the left.
    """
    path = "/" + "".join(f"{text}{{n{i}}}" for i, text in enumerate(texts[:-1])) + texts[-1]
    tree, exhaustive = tree_of(("GET", path)), re.compile("(.+?)".join(map(re.escape, texts)), re.DOTALL)
    filled = "".join(text + value for text, value in zip(texts, values, strict=False)) + texts[-1]
    for segment in {filled, "".join(values), filled[1:], filled[:-1]}:
        found, match = tree.find("GET", f"/{segment}"), exhaustive.fullmatch(segment)
        assert (found is None) == (match is None), segment
        if found is not None and match is not None:
            assert found.values == match.groups(), segment


@pytest.mark.parametrize(
    ("path", "piece", "short"),
    [("/{z}-{x}.pbf", "-", 4_000), ("/{z}-{x}-{y}.pbf", "-", 300), ("/a{a}{b}bb{c}b", "ab", 300)],
)
def test_names_in_one_segment_take_linear_time(path: str, piece: str, short: int) -> None:
    """The time is linear in the length of the segment, also without a match."""
    tree = tree_of(("GET", path))

    def seconds(length: int) -> float:
        segment = "/" + piece * length
        repeat = 1 + 20_000 // length
        return min(timeit.repeat(lambda: tree.find("GET", segment), number=repeat, repeat=5)) / repeat

    assert seconds(4 * short) < 8 * seconds(short)


def test_encoded_slashes_do_not_separate() -> None:
    """Segments are split before they are decoded; invalid UTF-8 is no path."""
    assert decode_path(b"/a%2Fb/%C3%A9?x=%2F") == ["a/b", "é"]
    assert decode_path(b"/%ff") is None


@pytest.mark.slow
@given(st.lists(st.text(max_size=8), min_size=1, max_size=6), st.sampled_from(["GET", "PUT", "HEAD"]))
def test_any_path_is_looked_up(segments: list[str], method: str) -> None:
    """Every path can be searched, and a match has a value for each name."""
    match = TREE.find(method, "/" + "/".join(segments))

    if match is not None and match.value is not None:
        assert len(match.values) == match.value.count("{")


def test_shape_and_display() -> None:
    """Paths of one shape answer the same requests; OpenAPI shows no converters."""
    assert parse_path("/a/{b}").shape == parse_path("/a/{c}").shape != parse_path("/a/{c:path}").shape
    assert parse_path("/a/{b:path}").display == "/a/{b}"
