"""``tangram`` / ``python -m tangram``: the command line.

A mistake of the operator is reported in a few lines, without a traceback. The exit status is 2 for a faulty
configuration or command, 1 if the server cannot start, 70 (``EX_SOFTWARE`` of BSD's sysexits) after too many
crashes, and 0 after a requested stop. Commands that talk to a running server end with 1 if it refuses, 69 if
none answers, and 77 without the operator's token.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from tangram import __version__
from tangram.cli.operator_commands import add_operator_commands
from tangram.cli.plugins import PluginGroup
from tangram.cli.streams import complain, give_up_dead_streams
from tangram.early_signals import end_on_term, is_stop_noted, prepare_server
from tangram.errors import OperatorError

if TYPE_CHECKING:
    from tangram.cli.logs import LogFormat

__all__ = ["cli", "main"]


@click.group(cls=PluginGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tangram")
def cli() -> None:
    """A plugin server: services, HTTP routes and Phoenix channels under one supervision tree."""


_SERVE_OPTIONS: Final = (
    click.option(
        "--config",
        "config_file",
        type=click.Path(path_type=Path),
        help="Default: $TANGRAM_CONFIG, else ./tangram.toml, else the user's configuration folder.",
    ),
    click.option(
        "--log-format",
        type=click.Choice(["console", "json"]),
        default="console",
        show_default=True,
        help="Lines for people, or a JSON object a line for programs.",
    ),
    click.option("--host", help="Addresses to listen on, in place of [server] host."),
    click.option(
        "--port", type=click.IntRange(0, 65535), help="The port, in place of [server] port; 0 is a free one."
    ),
    click.option("--log-level", help="The lowest level that is logged, in place of [log] level."),
    click.option(
        "--plugin",
        "plugins",
        multiple=True,
        help="A plugin in place of [core] plugins: a name, a path or module:attribute. May be repeated.",
    ),
    click.option("--open", "open_page", is_flag=True, help="Open the page at / in a browser."),
)


def _serve_options(function: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_SERVE_OPTIONS):
        function = option(function)
    return function


@cli.command()
@_serve_options
@click.option("--reload", is_flag=True, help="Reload plugins and the configuration when their files change.")
def serve(**options: Any) -> None:
    """Serve the configured plugins until SIGINT or SIGTERM.

    SIGHUP reads the configuration again and restarts cleanly. The options stay in force then.
    """
    _serve(**options)


@cli.command()
@_serve_options
def dev(**options: Any) -> None:
    """Serve, and reload plugins and the configuration when their files change.

    The same as serve --reload.
    """
    _serve(reload=True, **options)


def _serve(
    *,
    config_file: Path | None,
    log_format: LogFormat,
    host: str | None,
    port: int | None,
    log_level: str | None,
    plugins: tuple[str, ...],
    open_page: bool,
    reload: bool,
) -> NoReturn:
    from tangram.cli.init_process import run_below_init

    run_below_init()
    prepare_server()
    from tangram.cli.serving import serve_until_stopped

    given = {
        "TANGRAM_SERVER__HOST": host,
        "TANGRAM_SERVER__PORT": None if port is None else str(port),
        "TANGRAM_CORE__PLUGINS": json.dumps([_absolute(one) for one in plugins]) if plugins else None,
        "TANGRAM_CORE__LOG_LEVEL": log_level,  # compiled plugins read it
        "TANGRAM_LOG__LEVEL": log_level,
    }
    sys.exit(
        serve_until_stopped(
            config_file,
            log_format=log_format,
            overrides={name: value for name, value in given.items() if value is not None},
            open_page=open_page,
            watch=reload,
        )
    )


def _absolute(plugin: str) -> str:
    """Return a path of the command line as an absolute one.

    Relative paths begin in the folder of ``tangram.toml``.
    """
    place, colon, attribute = plugin.partition(":")
    return f"{Path(place).absolute()}{colon}{attribute}" if "/" in place or place.endswith(".py") else plugin


@cli.command()
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="As for serve.")
@click.option(
    "--seed", type=int, default=0, show_default=True, help="The faults and their times are drawn from it."
)
@click.option("--duration", type=float, default=20.0, show_default=True, help="Seconds.")
@click.option("--faults", default="", help="Names with commas between; all of them unless given.")
@click.option("--only", metavar="PLUGIN", help="Inject faults into this plugin only.")
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("tangram-chaos"),
    show_default=True,
    help="Where the report goes: this name with .json and .html.",
)
def chaos(
    *, config_file: Path | None, seed: int, duration: float, faults: str, only: str | None, report: Path
) -> None:
    """Inject faults into a server, and check that it keeps its promises.

    The configured server is started with ports, state and a broker of its own. The exit status is 1 if a
    promise is broken.
    """
    from tangram.cli.chaos import run_chaos

    names = [name.strip() for name in faults.split(",") if name.strip()]
    sys.exit(run_chaos(config_file, seed=seed, duration=duration, faults=names, only=only, report=report))


@cli.command("plugin-test")
@click.argument("path", type=click.Path(path_type=Path, exists=True, file_okay=False), default=".")
def plugin_test(path: Path) -> None:
    """Check the plugins of the project at PATH.

    Each plugin must start, answer, restart, come back after a crash, stop and leave no task, thread or file
    behind. The exit status is 1 if one does not.
    """
    from tangram.cli.plugintest import test_project

    sys.exit(test_project(path))


@cli.command()
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="As for serve.")
@click.option(
    "--plugin", "plugins", multiple=True, help="A plugin in place of [core] plugins. May be repeated."
)
@click.option("--asyncapi", "as_asyncapi", is_flag=True, help="The AsyncAPI document instead.")
def types(*, config_file: Path | None, plugins: tuple[str, ...], as_asyncapi: bool) -> None:
    """Print TypeScript declarations of the channels that the configured plugins have declared."""
    from tangram.cli.types import print_types

    named = tuple(_absolute(one) for one in plugins)
    sys.exit(print_types(config_file, plugins=named, as_asyncapi=as_asyncapi))


@cli.command()
@click.argument("name")
@click.option("--path", type=click.Path(path_type=Path), help="The folder to write into; ./NAME by default.")
@click.option("--front/--no-front", default=True, show_default=True, help="With a page for the browser.")
def new(name: str, path: Path | None, *, front: bool) -> None:
    """Write the project of a plugin: service, route, page, configuration and tests."""
    from tangram.cli.new import write_project

    write_project(name, folder=path, front=front)


add_operator_commands(cli)


def main() -> NoReturn:
    """Run the command line, and exit with one of the statuses in the module's docstring."""
    end_on_term()
    try:
        _run()
    except Exception:
        # The SystemExit of a signal was turned into another exception.
        if not is_stop_noted():
            raise
    finally:
        give_up_dead_streams()
    sys.exit(0)


def _run() -> None:
    try:
        cli.main(prog_name="tangram", standalone_mode=False)
    except OperatorError as error:
        complain(str(error))
        sys.exit(error.exit_status)
    except click.ClickException as error:
        with suppress(OSError):  # as for ``complain``
            error.show()
        sys.exit(2)
    except click.Abort:
        sys.exit(130)
