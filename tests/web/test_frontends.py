from __future__ import annotations

import errno
import time
from pathlib import Path
from typing import Any

import pytest

from tangram.asgi import Receive, Scope, Send, send_json
from tangram.plugins.frontend import resolve_frontend
from tangram.plugins.plugin import Plugin
from tangram.web.files import StaticFolder
from tests.plugins.fakes import loaded
from tests.web.asgi import call, site_of, with_frontend


@pytest.mark.parametrize("key", ["tangram_demo", "tangram-demo", "Tangram.Demo"])
async def test_files_are_served_under_both_spellings(tmp_path: Path, key: str) -> None:
    """The distribution's name with hyphens or underscores leads to the same folder."""
    answer = await call(site_of(with_frontend(tmp_path)), "GET", f"/plugins/{key}/index.js")

    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/javascript")


@pytest.mark.parametrize(
    "path",
    [
        "/plugins/tangram_demo",
        "/plugins/tangram_demo/",
        "/plugins/tangram_demo/missing.js",
        "/plugins/tangram_demo/../secret.txt",
        "/plugins/tangram_demo/%2e%2e/secret.txt",
        "/plugins/tangram_demo/..%2fsecret.txt",
        "/plugins/tangram_demo//etc/passwd",
        "/plugins/tangram_demo/link/secret.txt",
        "/plugins/tangram_demo/%00",
        "/plugins/ghost/index.js",
        "/plugins/",
    ],
)
async def test_folders_missing_files_and_outside_paths_are_404(tmp_path: Path, path: str) -> None:
    """Folders, missing files and paths that lead out of the folder are 404."""
    (tmp_path / "secret.txt").write_text("secret")
    one = with_frontend(tmp_path)
    (tmp_path / "dist" / "link").symlink_to(tmp_path)

    answer = await call(site_of(one), "GET", path)
    assert (answer.status, answer.json()) == (404, {"detail": "Not Found"})


async def test_ranges_and_validators(tmp_path: Path) -> None:
    """Files have an ETag that a browser may ask by, and ranges."""
    site = site_of(with_frontend(tmp_path))
    path = "/plugins/tangram_demo/index.js"

    first = await call(site, "GET", path)
    assert first.headers["cache-control"] == "no-cache"
    again = await call(site, "GET", path, headers={"if-none-match": first.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    part = await call(site, "GET", path, headers={"range": "bytes=0-5"})
    assert (part.status, part.body) == (206, b"export")
    assert (await call(site, "HEAD", path)).body == b""
    refused = await call(site, "DELETE", path)
    assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD")


async def test_names_with_a_hash_are_kept_for_ever(tmp_path: Path) -> None:
    """Names with a content hash are kept for a year, other names are asked for again."""
    one = with_frontend(tmp_path)
    for name in ["chunk-B7s9dK2q.js", "my-component.js"]:
        (tmp_path / "dist" / name).write_text("x")
    site = site_of(one)

    hashed = await call(site, "GET", "/plugins/tangram_demo/chunk-B7s9dK2q.js")
    plain = await call(site, "GET", "/plugins/tangram_demo/my-component.js")
    assert "immutable" in hashed.headers["cache-control"]
    assert plain.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    ("name", "hashed"),
    [
        ("index-BxYz1234.js", True),  # Vite, Rollup
        ("index-C4-x_8Ab.css", True),
        ("index.Cv6bi7od.js", True),
        ("chunk-BPW6GZ3T.js", True),  # esbuild
        ("main.0a1b2c3d.css", True),  # webpack, Parcel
        ("main.4f1c0ab93e5d77a2b6c1.js", True),
        ("my-component.js", False),
        ("layer-heatmap2d.js", False),
        ("arrow-right-24px.svg", False),
        ("arrow-left-24p.svg", False),
        ("layer-HeatMap2.js", False),
        ("icon-SCREENS3.png", False),
        ("track-20240131.json", False),
        ("wide-deadbeef.js", False),
        ("BxYz1234.js", False),
        ("index-BxYz1234", False),
        ("jquery-3.7.1.min.js", False),
        ("index-Bx\N{SUPERSCRIPT TWO}z12\N{ARABIC-INDIC DIGIT TWO}4.js", False),
        ("-" * 40 + "BxYz1234.js", True),
        ("-" * 300 + "BxYz1234.js", False),
    ],
)
async def test_content_hashes_are_told_from_plain_words(tmp_path: Path, name: str, hashed: bool) -> None:
    """Names that bundlers generate count as hashed, plain words do not."""
    if len(name) <= 255:
        (tmp_path / name).write_text("x")
    folder = StaticFolder(tmp_path)

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if not await folder.serve(name, scope, receive, send):
            await send_json(scope, send, 404, {})

    answer = await call(serve, "GET", "/")
    assert ("immutable" in answer.headers.get("cache-control", "")) is hashed


@pytest.mark.parametrize("name", ["-" * 32_000, "-." * 16_000, "a1-" * 10_000 + ".js", "a." * 15_000 + "js"])
async def test_a_long_name_is_checked_quickly(tmp_path: Path, name: str) -> None:
    """A very long file name counts as plain, and the check takes far less than a second."""
    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/", "headers": []}

    async def never(*_: object) -> Any:
        raise AssertionError

    before = time.thread_time()
    assert not await StaticFolder(tmp_path).serve(name, scope, never, never)
    assert time.thread_time() - before < 0.5


async def test_a_missing_folder_leaves_out_its_front_end_only(tmp_path: Path) -> None:
    """A declared folder that is not there is a warning; routes and site go on."""
    one = loaded(Plugin(frontend_path="dist-frontend"), source=tmp_path)

    assert resolve_frontend(one) is None
    assert (await call(site_of(one), "GET", "/-/healthz")).status == 200


def test_an_editable_installs_folder_is_relative_to_the_project(tmp_path: Path) -> None:
    """The project's root first, then the import package."""
    project, package = tmp_path / "project", tmp_path / "project" / "src" / "pkg"
    package.mkdir(parents=True)
    (package / "dist").mkdir()
    plugin = Plugin(frontend_path="dist")

    in_package = resolve_frontend(loaded(plugin, source=package, project_root=project))
    (project / "dist").mkdir()
    in_project = resolve_frontend(loaded(plugin, source=package, project_root=project))
    assert (in_package, in_project) == (package / "dist", project / "dist")


@pytest.mark.parametrize("name", [".env", ".git/config", "assets/.DS_Store", ".well-known/.secret"])
async def test_names_with_a_leading_dot_are_not_served(tmp_path: Path, name: str) -> None:
    """Hidden files and folders of a front end are 404, whichever method asks."""
    site = site_of(with_frontend(tmp_path))
    file = tmp_path / "dist" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("secret")

    assert (await call(site, "GET", "/plugins/tangram_demo/index.js")).status == 200
    for method in ("GET", "HEAD", "POST"):
        answer = await call(site, method, f"/plugins/tangram_demo/{name}")
        assert (answer.status, b"secret" in answer.body) == (404, False)


async def test_well_known_files_are_served(tmp_path: Path) -> None:
    """``.well-known`` is the one hidden folder that browsers ask for."""
    site = site_of(with_frontend(tmp_path))
    (tmp_path / "dist" / ".well-known").mkdir()
    (tmp_path / "dist" / ".well-known" / "security.txt").write_text("Contact: x")

    assert (await call(site, "GET", "/plugins/tangram_demo/.well-known/security.txt")).body == b"Contact: x"


async def test_a_file_that_cannot_be_opened_now_is_503(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EMFILE is no missing file: pages and front ends answer 503 with Retry-After."""
    site = site_of(with_frontend(tmp_path))

    def open_without_descriptors(*_args: object, **_options: object) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr("tangram.routing.files.os.open", open_without_descriptors)
    for path in ("/", "/static/app.js", "/plugins/tangram_demo/index.js", "/docs/swagger-ui.css"):
        answer = await call(site, "GET", path)
        assert (answer.status, answer.headers["retry-after"]) == (503, "5"), path
    assert (await call(site, "GET", "/docs")).status == 200
