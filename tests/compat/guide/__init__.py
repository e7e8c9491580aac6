"""The plugin guide's code, indented as Python requires, and modules made of it."""

from __future__ import annotations

import textwrap
from pathlib import Path

__all__ = ["EXAMPLES", "FOLDER", "source_of", "write_project"]

FOLDER = Path(__file__).parent

EXAMPLES = ("anatomy", "endpoint", "service", "publish", "subscriber")


def source_of(example: str) -> str:
    """Return an example as a module; the code from within a service is put into a service."""
    source = (FOLDER / f"{example}.txt").read_text()
    if example != "publish":
        return source
    service = "async def publish_once(backend_state):\n" + textwrap.indent(source, "    ")
    return f"import tangram_core\nplugin = tangram_core.Plugin()\n@plugin.register_service()\n{service}"


def write_project(example: str, folder: Path) -> Path:
    """Write the guide's project with an example, as pip installs it."""
    package = folder / "src" / "my_plugin"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(source_of(example))
    build = '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
    where = '[tool.hatch.build.targets.wheel]\npackages = ["src/my_plugin"]\n'
    (folder / "pyproject.toml").write_text(f"{build}{(FOLDER / 'pyproject.txt').read_text()}{where}")
    return folder
