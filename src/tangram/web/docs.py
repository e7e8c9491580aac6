"""``/docs`` and ``/openapi.json``: the interface of all routes, readable without internet access.

The page's scripts come from the ``swagger-ui-bundle`` distribution and are served by us. The Swagger UI in
there reads OpenAPI 3.0, we write 3.1: the page's own script rewrites the few words that differ before it
hands the document over.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

__all__ = ["DOCS_FILES", "docs_folder", "docs_page", "docs_script"]

DOCS_FILES = frozenset({"swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png"})
"""What the page needs of the distribution; nothing else of it is served."""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>tangram: routes</title>
<link rel="icon" type="image/png" href="/docs/favicon-32x32.png">
<link rel="stylesheet" href="/docs/swagger-ui.css">
<style>body { margin: 0; background: #fff; }</style>
</head>
<body>
<div id="swagger-ui"></div>
<noscript>The routes are described in <a href="/openapi.json">/openapi.json</a>.</noscript>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/tangram-docs.js"></script>
</body>
</html>
"""

_PAGE_WITHOUT_BUNDLE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>tangram: routes</title></head>
<body>
<p>The routes are described in <a href="/openapi.json">/openapi.json</a>.
For a page that shows them, install <code>swagger-ui-bundle</code>.</p>
</body>
</html>
"""

_SCRIPT = """// Swagger UI 4 refuses documents of OpenAPI 3.1: say the same in the words of 3.0.
function older(node) {
  if (Array.isArray(node)) return node.map(older);
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
      if (some.length === 1 && !some[0].$ref) Object.assign(out, older(some[0]));
      else out.anyOf = older(some);
    } else if (key === "const") out.enum = [value];
    else if (key === "exclusiveMinimum" && typeof value === "number") { out.minimum = value;
    out.exclusiveMinimum = true; } else if (key === "exclusiveMaximum" && typeof value === "number") {
    out.maximum = value; out.exclusiveMaximum = true; } else out[key] = older(value);
  }
  return out;
}

fetch("/openapi.json")
  .then((answer) => answer.json())
  .then((spec) => {
    SwaggerUIBundle({
      spec: { ...older(spec), openapi: "3.0.3" },
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


def docs_folder() -> Path | None:
    """Where the distribution keeps Swagger UI; ``None`` where it is not installed. Imports nothing of it."""
    spec = find_spec("swagger_ui_bundle")
    if spec is None or not spec.origin:
        return None
    versions = sorted((Path(spec.origin).parent / "vendor").glob("swagger-ui-*"))
    return versions[-1] if versions else None


def docs_page() -> bytes:
    """The page at ``/docs``."""
    return (_PAGE if docs_folder() is not None else _PAGE_WITHOUT_BUNDLE).encode()


def docs_script() -> bytes:
    """What the page runs."""
    return _SCRIPT.encode()
