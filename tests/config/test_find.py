"""Finding the configuration file."""

from pathlib import Path

import pytest

from tangram.config.load import current_folder, find_config_file, load_config
from tangram.errors import ConfigError


def test_the_file_is_searched_in_order(tmp_path: Path) -> None:
    """The order is --config, TANGRAM_CONFIG, the current folder, the XDG folder."""
    cwd, xdg = tmp_path / "cwd", tmp_path / "xdg"
    cwd.mkdir()
    environ = {"XDG_CONFIG_HOME": str(xdg), "HOME": str(tmp_path)}

    assert find_config_file(None, environ, cwd) is None
    assert not xdg.exists()
    (xdg / "tangram").mkdir(parents=True)
    (xdg / "tangram" / "tangram.toml").touch()
    assert find_config_file(None, environ, cwd) == xdg / "tangram" / "tangram.toml"
    (cwd / "tangram.toml").touch()
    assert find_config_file(None, environ, cwd) == cwd / "tangram.toml"
    environ["TANGRAM_CONFIG"] = "other.toml"
    assert find_config_file(None, environ, cwd) == cwd / "other.toml"
    assert find_config_file("mine.toml", environ, cwd) == cwd / "mine.toml"
    home = {"HOME": str(tmp_path)}
    (tmp_path / ".config" / "tangram").mkdir(parents=True)
    (tmp_path / ".config" / "tangram" / "tangram.toml").touch()
    (cwd / "tangram.toml").unlink()
    assert find_config_file(None, home, cwd) == tmp_path / ".config" / "tangram" / "tangram.toml"


def test_an_unusable_path_finds_no_file(tmp_path: Path) -> None:
    """A missing account's home, and a path that the system refuses, lead to no file."""
    written = tmp_path / "~nobody-of-that-name" / "t.toml"

    assert find_config_file("~nobody-of-that-name/t.toml", {}, tmp_path) == written
    assert find_config_file(None, {"TANGRAM_CONFIG": "~nobody-of-that-name/t.toml"}, tmp_path) == written
    assert find_config_file(None, {"XDG_CONFIG_HOME": "/x" * 5000}, tmp_path) is None
    with pytest.raises(ConfigError, match="no such file"):
        load_config(written, {})


def test_an_account_without_a_home_has_no_file(tmp_path: Path, homeless: None) -> None:
    """Without a home folder no file is found in it."""
    assert find_config_file(None, {}, tmp_path) is None


def test_a_removed_current_folder_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command reports it, and so does a reload without a file."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()

    with pytest.raises(ConfigError, match="the current folder was removed"):
        current_folder()
    with pytest.raises(ConfigError, match="the current folder was removed"):
        load_config(None, {})
