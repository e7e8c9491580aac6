"""The page ``/docs``: Swagger UI over ``/openapi.json``, without internet access.

Swagger UI comes from the ``swagger-ui-bundle`` distribution, and its files are served from there. That
version reads OpenAPI 3.0 while the server writes 3.1, so the script of the page converts the document first.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

__all__ = ["DOCS_FILES", "docs_folder", "docs_page", "docs_script"]

DOCS_FILES: Final = frozenset({"swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png"})
"""The files of Swagger UI that are served."""

_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>tangram: routes</title>
<link rel="icon" type="image/png" href="docs/favicon-32x32.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
<meta name="color-scheme" content="light dark">
<style>
body { margin: 0; background: #fff; }
/* Swagger UI has light colours only: turned around, with the hues kept, they are dark ones. */
@media (prefers-color-scheme: dark) {
  body { background: #16181b; }
  #swagger-ui { filter: invert(0.9) hue-rotate(180deg); }
  #swagger-ui .microlight, #swagger-ui img { filter: invert(1) hue-rotate(180deg); }
}
</style>
</head>
<body>
<div id="swagger-ui"></div>
<noscript>The routes are described in <a href="openapi.json">/openapi.json</a>.</noscript>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/tangram-docs.js"></script>
</body>
</html>
"""

_PAGE_WITHOUT_BUNDLE: Final = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>tangram: routes</title></head>
<body>
<p>The routes are described in <a href="openapi.json">/openapi.json</a>.
For a page that shows them, install <code>swagger-ui-bundle</code>.</p>
</body>
</html>
"""

_SCRIPT: Final = """// Swagger UI 4 refuses OpenAPI 3.1: convert the schemas to their form in 3.0.
function toOpenApi30(node) {
  if (Array.isArray(node)) return node.map(toOpenApi30);
  if (node === null || typeof node !== "object") return node;
  const out = {};
  for (const [key, value] of Object.entries(node)) {
    if (key === "type" && Array.isArray(value)) {
      const types = value.filter((one) => one !== "null");
      if (types.length < value.length) out.nullable = true;
      if (types.length === 1) out.type = types[0];
      else if (types.length) out.anyOf = types.map((type) => ({ type }));
    } else if (key === "anyOf" && Array.isArray(value)) {
      const some = value.filter((one) => !(one && one.type === "null"));
      if (some.length < value.length) out.nullable = true;
      if (some.length === 1 && !some[0].$ref) Object.assign(out, toOpenApi30(some[0]));
      else out.anyOf = toOpenApi30(some);
    } else if (key === "const") out.enum = [value];
    else if (key === "exclusiveMinimum" && typeof value === "number") { out.minimum = value;
    out.exclusiveMinimum = true; } else if (key === "exclusiveMaximum" && typeof value === "number") {
    out.maximum = value; out.exclusiveMaximum = true; } else out[key] = toOpenApi30(value);
  }
  return out;
}

fetch("openapi.json")
  .then((answer) => answer.json())
  .then((spec) => {
    SwaggerUIBundle({
      spec: { ...toOpenApi30(spec), openapi: "3.0.3" },
      dom_id: "#swagger-ui",
      deepLinking: true,
      presets: [SwaggerUIBundle.presets.apis],
      validatorUrl: null,
    });
  })
  .catch((error) => {
    document.getElementById("swagger-ui").textContent = `/openapi.json cannot be shown: ${error}`;
  });
"""


@cache
def docs_folder() -> Path | None:
    """Return the folder of Swagger UI, or ``None`` where it is not installed.

    The distribution is not imported: it reads template files at import. It is looked up once, because each
    restart builds a site, and a process without descriptors could not look again.
    """
    spec = find_spec("swagger_ui_bundle")
    if spec is None or not spec.origin:
        return None
    versions = sorted((Path(spec.origin).parent / "vendor").glob("swagger-ui-*"))
    return versions[-1] if versions else None


def docs_page(folder: Path | None) -> bytes:
    """Return the HTML of ``/docs``; ``folder`` is that of Swagger UI, if it is installed."""
    return (_PAGE if folder is not None else _PAGE_WITHOUT_BUNDLE).encode()


def docs_script() -> bytes:
    """Return the script of ``/docs``."""
    return _SCRIPT.encode()
