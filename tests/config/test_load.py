"""Reading the configuration."""

import os
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tangram.config.load import LoadedConfig, _build, load_config
from tangram.config.model import AdaptiveTheme, Config
from tangram.errors import ConfigError, Fault

SECTIONS = {
    field.name: field.type
    for field in attrs.fields(Config)
    if isinstance(field.type, type) and attrs.has(field.type)
}
KEYS = [(name, field.name, field.type) for name, cls in SECTIONS.items() for field in attrs.fields(cls)]


def write(folder: Path, text: str) -> Path:
    path = folder / "tangram.toml"
    path.write_text(text)
    return path


def faults(folder: Path, text: str, environ: dict[str, str] | None = None) -> dict[str, str]:
    with pytest.raises(ConfigError) as raised:
        load_config(write(folder, text), environ or {})
    assert "Traceback" not in str(raised.value)
    assert raised.value.exit_status == 2
    return {fault.path: fault.what for fault in raised.value.faults}


def load(folder: Path, text: str, environ: dict[str, str] | None = None) -> Config:
    return load_config(write(folder, text), environ or {}).config


def test_no_file_gives_the_defaults() -> None:
    """Without a file and variables every setting has its default, without warnings."""
    loaded = load_config(None, {})

    assert loaded.config == Config()
    assert loaded.warnings == ()


def test_values_reach_the_model(tmp_path: Path) -> None:
    """The model has the file's values; an integer may stand for a float."""
    config = load(
        tmp_path,
        """
        [core]
        plugins = ["b", "a"]
        theme = "dark"
        [server]
        idle_timeout = 5
        forwarded_allow_ips = "10.0.0.0/8, ::1"
        [plugins.My-Plugin]
        deep = { a = [1, 2] }
        [map]
        layers_visibility = { roads = false }
        """,
    )

    assert config.core.plugins == ("b", "a")
    assert config.core.theme == "dark"
    assert config.server.idle_timeout == 5.0
    assert isinstance(config.server.idle_timeout, float)
    assert config.server.forwarded_allow_ips == ("10.0.0.0/8", "::1")
    assert config.plugins == {"my_plugin": {"deep": {"a": [1, 2]}}}
    assert config.map.layers_visibility == {"roads": False}
    assert config.source == tmp_path / "tangram.toml"


def test_all_faults_are_listed(tmp_path: Path) -> None:
    """One run lists the faults of all tables, each with value, expectation and path."""
    found = faults(
        tmp_path,
        """
        [core]
        plugins = ["a", 3]
        themes = [{ name = "x" }]
        [server]
        port = 70000
        prot = 1
        host = 5
        [map]
        zoom = 99
        center_lat = "3"
        [channel]
        conflate = ["to:x:y", "a:b", "c"]
        [cache]
        entries = [{ origin = "ftp://x" }]
        """,
    )

    assert found["core.plugins[1]"] == "expected a string, got 3"
    assert "core.themes[0].background" in found
    assert len([path for path in found if path.startswith("core.themes[0].")]) == 11
    assert found["server.port"] == "expected a port between 0 (any free one) and 65535, got 70000"
    assert found["server.prot"] == "unknown key 'prot': did you mean 'port'?"
    assert found["server.host"] == "expected a string, got 5"
    assert found["map.zoom"] == "expected a value <= 24, got 99"
    assert found["map.center_lat"] == "expected a number, got '3'"
    assert {"channel.conflate[0]", "channel.conflate[2]", "cache.entries[0].serve_route"} <= found.keys()
    assert "channel.conflate[1]" not in found
    assert "got 'ftp://x'" in found["cache.entries[0].origin"]


@pytest.mark.parametrize(
    ("text", "path", "what"),
    [
        ("[server]\nport = true", "server.port", "expected an integer, got True"),
        ("[server]\nport = 2346.0", "server.port", "expected an integer, got 2346.0"),
        ("[server]\nport = -1", "server.port", "got -1"),
        ("[server]\nengine = 'nativ'", "server.engine", "expected one of 'native', 'hypercorn', got 'nativ'"),
        ("[server]\nidle_timeout = nan", "server.idle_timeout", "expected a finite number"),
        ("[server]\nidle_timeout = 0", "server.idle_timeout", "expected a value > 0, got 0"),
        ("[server]\nallowed_origins = ['null']", "server.allowed_origins[0]", "expected an origin"),
        ("[server]\nallowed_origins = ['https://a/']", "server.allowed_origins[0]", "expected an origin"),
        ("[server]\nforwarded_allow_ips = ['x']", "server.forwarded_allow_ips[0]", "expected an address"),
        ("[server]\nhost = ' '", "server.host", "expected some text"),
        ("[core]\nplugins = 'weather'", "core.plugins", "expected an array, got 'weather'"),
        ("[core]\nlog_level = 'loud'", "core.log_level", "got 'loud'"),
        ("[core]\nredis_url = 'http://x'", "core.redis_url", "expected a URL that begins with redis://"),
        ("[core]\nredis_url = 'redis://'", "core.redis_url", "expected a host"),
        ("[core]\nredis_url = 'redis://h:0'", "core.redis_url", "expected a port"),
        (
            "[core]\nredis_url = 'redis://h/x'",
            "core.redis_url",
            "expected nothing or the number of a database",
        ),
        (
            "[core]\nredis_url = 'redis://redis..internal:6379'",
            "core.redis_url",
            "expected the name of a host",
        ),
        (f"[core]\nredis_url = 'redis://{'a' * 64}'", "core.redis_url", "expected the name of a host"),
        ("[core]\nredis_url = 'unix://'", "core.redis_url", "expected the path of a socket"),
        ("[core]\nredis_url = 'redis://[::1'", "core.redis_url", "got"),
        ("[core]\ntheme = 3", "core.theme", "expected the name of a theme"),
        ("[core]\ntheme = {light = 3}", "core.theme.light", "expected a string, got 3"),
        ("core = 3", "core", "expected a table, got 3"),
        ("plugins = 3", "plugins", "expected a table for each plugin"),
        ("[plugins]\nx = 3", "plugins.x", "expected a table"),
        ("[plugins.a-b]\n[plugins.A_b]", "plugins.A_b", "the same plugin as 'a-b'"),
        ("[map]\nmin_zoom = 9\nmax_zoom = 3", "map.min_zoom", "expected at most max_zoom (3.0), got 9.0"),
        ("[map]\nstyle = 4", "map.style", "expected a style's URL"),
        ("[map]\nstyle = 'missing.json'", "map.style", "expected a style file, but there is none"),
        (
            "[map.layers_visibility]\nroads = 1",
            "map.layers_visibility.roads",
            "expected true or false, got 1",
        ),
        ("[channel]\nport = 2346", "channel.port", "expected another port than server.port"),
        ("[channel]\npublic_url = 'ws://x'", "channel.public_url", "expected a URL that begins with http://"),
        ("[supervisor]\nbackoff_initial = 9", "supervisor.backoff_initial", "expected at most backoff_max"),
        ("[supervisor]\nstrategy = 'all'", "supervisor.strategy", "expected one of 'one_for_all'"),
        ("[[cache.entries]]\nserve_route = '/a'", "cache.entries[0].local_path", "has no {name}"),
        (
            "[[cache.entries]]\nserve_route = '/{a'",
            "cache.entries[0].serve_route",
            "expected balanced {name}",
        ),
        ("[[cache.entries]]\nserve_route = '/{a}/{a}'", "cache.entries[0].serve_route", "each {name} once"),
        ("[[cache.entries]]\nserve_route = '/{if}'", "cache.entries[0].serve_route", "other than {if}"),
        (
            "[[cache.entries]]\nserve_route = '/{a}'\norigin = 'http://x/{b}'",
            "cache.entries[0].origin",
            "expected only names of serve_route, got {b}",
        ),
        ("[broker]\nbinary = 'nowhere'", "broker.binary", "expected a file, but there is none"),
        ("[server]\nfrontend = 'nowhere'", "server.frontend", "no such folder"),
        ("[server]\nstate_dir = ''", "server.state_dir", "expected the path"),
        ("[compat]\nislands = 1", "compat.islands", "expected one of 'each', 'one', got 1"),
    ],
)
def test_each_mistake_is_reported_at_its_place(tmp_path: Path, text: str, path: str, what: str) -> None:
    """The fault names the expectation."""
    found = faults(tmp_path, text)

    assert what in found[path]
    assert len(found) == 1


def test_the_native_engine_with_tls_is_a_fault(tmp_path: Path) -> None:
    """Without an engine, a certificate selects Hypercorn."""
    (tmp_path / "c.pem").touch()
    (tmp_path / "k.pem").touch()
    tls = "[server]\ntls_cert = 'c.pem'\ntls_key = 'k.pem'\n"

    assert "does not speak TLS" in faults(tmp_path, tls + "engine = 'native'")["server.engine"]
    server = load(tmp_path, tls).server
    assert server.effective_engine == "hypercorn"
    assert server.tls_key == tmp_path / "k.pem"
    assert Config().server.effective_engine == "native"


@pytest.mark.parametrize(("there", "missing"), [("tls_cert", "tls_key"), ("tls_key", "tls_cert")])
def test_a_certificate_needs_its_key(tmp_path: Path, there: str, missing: str) -> None:
    """A certificate or a key alone is a fault at the missing setting."""
    (tmp_path / "x.pem").touch()

    found = faults(tmp_path, f"[server]\n{there} = 'x.pem'")

    assert found == {f"server.{missing}": f"{there} is set: expected {missing} as well"}


def test_secrets_are_never_shown(tmp_path: Path) -> None:
    """Faults and ``repr`` hide secrets and passwords in URLs, also in malformed settings."""
    for text in (
        "[channel]\njwt_secret = ['hunter2']",
        "[[channel]]\njwt_secret = 'hunter2'",
        "[server]\noperator_token = { a = 'hunter2' }",
        "[core]\nredis_url = 'redis://:hunter2@h:99999'",
        "[core]\nredis_url = 'redis://:hunter2@h/x'",
        "[core]\nredis_url = 'redis://u:hun@ter/hunter2@h:0'",
        "[core]\nredis_url = 'redis://:hunter2'",
        "[core]\nredis_url = 'http://u:hunter2@h'",
        "[core]\nredis_url = 'redis://h:0?password=hunter2'",
        "[[core]]\nredis_url = 'redis://:hunter2@h'",
    ):
        assert "hunter2" not in repr(faults(tmp_path, text)), text
    shown = repr(
        load(
            tmp_path,
            "[channel]\njwt_secret = 'hunter2'\n[server]\noperator_token = 'hunter2'\n"
            "[core]\nredis_url = 'redis://:hunter2@h'\n[plugins.x]\npassword = 'hunter2'\n"
            "[[cache.entries]]\nserve_route = '/{a}'\n origin = 'https://u:hunter2@h/{a}?key=hunter2'",
        )
    )
    assert "hunter2" not in shown
    assert "redis://:***@h" in shown


def test_weak_and_ignored_settings_are_warnings(tmp_path: Path) -> None:
    """The configuration is used."""
    loaded = load_config(
        write(
            tmp_path,
            "[chanel]\nport = 1\n[channel]\nhost = 'h'\njwt_secret = 'secret'\n[core]\ntheme = 'drak'\n",
        ),
        {"TANGRAM_SERVER__OPERATOR_TOKEN": "x"},
    )

    assert loaded.warnings == (
        "unknown table [chanel] is ignored: did you mean [channel]?",
        "channel.host has no effect without channel.port: channels share the address of [server]",
        "channel.jwt_secret is short: 32 random bytes are not guessed, or leave it out",
        "server.operator_token is short: 16 random bytes are not guessed, or leave it out",
        "no theme has the name 'drak' @ core.theme: did you mean 'dark'?",
    )


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (b"[core]\nplugins = [\n'a' 'b']\n", ":3:5"),
        (b"[core]\nx = \xff\n", ":2:5"),
        (b"[core", ":1:6"),
        (b"a = 1\na = 2\n", ":2:"),
        (b"a = " + b"[" * 100000, ""),
        (b"a = " + b"9" * 5000, ""),
    ],
)
def test_malformed_toml_is_reported_with_its_place(tmp_path: Path, data: bytes, where: str) -> None:
    """The fault has line and column."""
    path = tmp_path / "tangram.toml"
    path.write_bytes(data)

    with pytest.raises(ConfigError) as raised:
        load_config(path, {})

    (fault,) = raised.value.faults
    assert fault.path.startswith(f"{path}{where}")
    assert fault.kind == "toml_syntax"


def test_an_unreadable_file_is_a_fault(tmp_path: Path) -> None:
    """A missing file or a folder in its place raises no other exception."""
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            load_config(path, {})


def test_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    """Windows editors write one."""
    path = tmp_path / "tangram.toml"
    path.write_bytes(b"\xef\xbb\xbf[server]\nport = 1\n")

    assert load_config(path, {}).config.server.port == 1


def test_a_variable_replaces_the_files_value(tmp_path: Path) -> None:
    """TOML literals are read as such, other text as text."""
    config = load(
        tmp_path,
        "[server]\nport = 1\nhost = 'a'\n[plugins.My-Plugin]\nkey = 1\nother = 2\n",
        {
            "TANGRAM_SERVER__PORT": "2",
            "TANGRAM_SERVER__HOST": "b.example",
            "TANGRAM_CORE__PLUGINS": "['x', \"y\"]",
            "TANGRAM_CORE__STRICT": "true",
            "TANGRAM_CORE__THEME__LIGHT": "sun",
            "TANGRAM_CHANNEL__JWT_SECRET": "12345678901234567890123456789012",
            "TANGRAM_CHANNEL__PUBLIC_URL": "",
            "TANGRAM_PLUGINS__MY_PLUGIN__KEY": "[1, 2]",
            "TANGRAM_MAP__LANG": "1\nport = 3",
            "TANGRAM_CONFIG": "elsewhere.toml",
            "OTHER_SERVER__PORT": "9",
        },
    )

    assert (config.server.port, config.server.host) == (2, "b.example")
    assert config.core.plugins == ("x", "y")
    assert config.core.strict is True
    assert config.core.theme == AdaptiveTheme(light="sun")
    assert config.channel.jwt_secret == "12345678901234567890123456789012"
    assert config.channel.public_url is None
    assert config.plugins == {"my_plugin": {"key": [1, 2], "other": 2}}
    assert config.map.lang == "1\nport = 3"


def test_a_fault_names_its_variable(tmp_path: Path) -> None:
    """A fault in a variable's value names the variable."""
    found = faults(tmp_path, "", {"TANGRAM_SERVER__PORT": "many", "TANGRAM_SERVER__PROT": "1"})

    assert found["server.port"] == "expected an integer, got 'many' (from TANGRAM_SERVER__PORT)"
    assert "TANGRAM_SERVER__PROT" in found["server.prot"]


def test_a_variable_is_one_value(tmp_path: Path) -> None:
    """Text that looks like two lines of TOML stays one value."""
    assert faults(tmp_path, "", {"TANGRAM_CORE__STRICT": "true\nplugins = ['x']"}).keys() == {"core.strict"}


def test_a_variable_of_a_broken_table_is_no_second_fault(tmp_path: Path) -> None:
    """The table itself is the fault."""
    assert faults(tmp_path, "core = 3", {"TANGRAM_CORE__STRICT": "true"}).keys() == {"core"}


def test_a_local_style_is_read(tmp_path: Path) -> None:
    """A style that names a file becomes the file's content; names stay names."""
    (tmp_path / "s.json").write_text('{"version": 8, "name": "S"}')
    config = load(tmp_path, "[map]\nstyle = 's.json'\nstyles = ['s.json', 'radar-dark', 'https://x/s.json']")

    assert config.map.style == {"version": 8, "name": "S"}
    assert config.map.styles == ({"version": 8, "name": "S"}, "radar-dark", "https://x/s.json")


@pytest.mark.parametrize("content", ["{", "[1]", "\udcff", "[" * 100000])
def test_a_bad_local_style_is_a_fault(tmp_path: Path, content: str) -> None:
    """A style file that is not a JSON object is a fault at its setting."""
    (tmp_path / "s.json").write_bytes(content.encode(errors="surrogateescape"))

    assert faults(tmp_path, "[map]\nstyles = ['x', 's.json']").keys() == {"map.styles[1]"}


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    """Files and folders are relative to the configuration file, not to the current folder."""
    (tmp_path / "page").mkdir()
    config = load(
        tmp_path,
        "[server]\nstate_dir = 'state'\nfrontend = 'page'\n"
        "[[cache.entries]]\nserve_route = '/f/{x}'\nlocal_path = 'fonts'\norigin = 'https://x/{x}'\n",
    )

    assert config.server.state_dir == tmp_path / "state"
    assert config.server.frontend == str(tmp_path / "page")
    assert config.cache.entries[0].local_path == tmp_path / "fonts"
    assert load(tmp_path, "[server]\nfrontend = 'Tangram-Core'").server.frontend == "tangram_core"


def test_a_public_url_loses_its_last_slash(tmp_path: Path) -> None:
    """Browsers append a path to it."""
    assert load(tmp_path, "[channel]\npublic_url = 'https://h/rt/'").channel.public_url == "https://h/rt"


def test_with_redis_url_replaces_only_the_url() -> None:
    """The copy has the broker's URL, and is equal otherwise."""
    config = Config()

    assert config.with_redis_url("redis://h").core.redis_url == "redis://h"
    assert attrs.evolve(config.with_redis_url("redis://h"), core=config.core) == config


PLAIN = st.one_of(
    st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.dates(), st.none().map(lambda _: [])
)
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def attempt(tables: dict[str, object]) -> tuple[LoadedConfig | None, tuple[Fault, ...]]:
    try:
        return _build(tables, None), ()
    except ConfigError as error:
        assert error.faults, error  # noqa: PT017 - the caller looks at the faults
        return None, error.faults


def fits(value: object, expected: object) -> bool:
    kinds = {str: str, int: int, float: (int, float), bool: bool}
    kind = kinds.get(expected)  # type: ignore[call-overload]
    return kind is not None and isinstance(value, kind) and (expected is bool or not isinstance(value, bool))


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(KEYS), value=VALUES)
def test_any_value_gives_a_configuration_or_faults(key: tuple[str, str, object], value: object) -> None:
    """Any value at a key raises at most ``ConfigError`` with faults at that key."""
    section, name, expected = key

    loaded, told = attempt({section: {name: value}})

    for fault in told:
        # A conflict of two settings is reported at the other one.
        assert fault.path.startswith((f"{section}.{name}", f"{section}.tls_", f"{section}.backoff_"))
    if loaded is not None:
        listed = (
            key[:2] == ("server", "host") and isinstance(value, list) and all(fits(v, str) for v in value)
        )
        assert expected not in {str, int, float, bool} or fits(value, expected) or (listed and value)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(max_size=6) | st.sampled_from([*SECTIONS, "plugins"]), VALUES, max_size=3))
def test_any_tables_raise_only_config_error(tables: dict[str, object]) -> None:
    """This holds for documents of any shape."""
    loaded, told = attempt(tables)

    assert all(fault.path for fault in told)
    if loaded is not None:
        unknown = tables.keys() - {*SECTIONS, "plugins"}
        assert len([text for text in loaded.warnings if text.startswith("unknown table")]) == len(unknown)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.sampled_from([f"TANGRAM_{s}__{n}".upper() for s, n, _ in KEYS]), st.text(max_size=12))
)
def test_any_environment_raises_only_config_error(environ: dict[str, str]) -> None:
    """This holds for variables of any name and text."""
    told: tuple[Fault, ...] = ()
    try:
        load_config(None, environ)
    except ConfigError as error:
        told = error.faults

    # A setting that is missing beside a variable is not the variable's fault.
    beside = ("server.tls_", "cache.entries[", "supervisor.backoff_")
    assert all("TANGRAM_" in fault.what or fault.path.startswith(beside) for fault in told)


def test_every_wrong_type_is_reported() -> None:
    """An array of dates at every key gives a fault at every key."""
    wrong = {section: {name: [object()] for s, name, _ in KEYS if s == section} for section in SECTIONS}
    with pytest.raises(ConfigError) as raised:
        _build(wrong, None)

    told = {fault.path.partition("[")[0] for fault in raised.value.faults}
    assert told == {f"{section}.{name}" for section, name, _ in KEYS}


def test_importing_the_configuration_is_cheap() -> None:
    """The import makes no converter, and imports neither cattrs nor asyncio nor trio."""
    code = (
        "import sys, tangram.config\n"
        "print([m for m in ('cattrs', 'asyncio', 'trio', 'structlog') if m in sys.modules])"
    )
    environ = {**os.environ, "PYTHONPATH": "src"}

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environ)

    assert done.stdout == b"[]\n"
