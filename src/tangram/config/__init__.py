"""The configuration: its model, and reading it from TOML and the environment."""

from tangram.config.load import LoadedConfig, current_folder, find_config_file, load_config, load_tables
from tangram.config.model import (
    AdaptiveTheme,
    BrokerConfig,
    CacheConfig,
    CacheEntry,
    ChannelConfig,
    ClusterConfig,
    CompatConfig,
    Config,
    CoreConfig,
    LogConfig,
    MapConfig,
    ServerConfig,
    SupervisorConfig,
    ThemeDefinition,
)
from tangram.config.names import nearest, normalise
from tangram.config.state import (
    OPERATOR_TOKEN,
    SECRET_LEAST,
    broker_folder,
    cache_dir,
    ensure_secret,
    find_operator_token,
    open_state_dir,
)
from tangram.config.structure import structure_plugin_config, structure_table, unknown_plugin_keys

__all__ = [
    "OPERATOR_TOKEN",
    "SECRET_LEAST",
    "AdaptiveTheme",
    "BrokerConfig",
    "CacheConfig",
    "CacheEntry",
    "ChannelConfig",
    "ClusterConfig",
    "CompatConfig",
    "Config",
    "CoreConfig",
    "LoadedConfig",
    "LogConfig",
    "MapConfig",
    "ServerConfig",
    "SupervisorConfig",
    "ThemeDefinition",
    "broker_folder",
    "cache_dir",
    "current_folder",
    "ensure_secret",
    "find_config_file",
    "find_operator_token",
    "load_config",
    "load_tables",
    "nearest",
    "normalise",
    "open_state_dir",
    "structure_plugin_config",
    "structure_table",
    "unknown_plugin_keys",
]
