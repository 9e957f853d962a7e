"""The configuration: typed sections (`schema`), and YAML, flags and `--set` read into them (`load`)."""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expand.config.load import config_diff, config_names, dump_config, load_config, parse_config
    from expand.config.schema import Config, flatten, with_values

__all__ = ["Config", "config_diff", "config_names", "dump_config", "flatten", "load_config", "parse_config",
           "with_values"]

_MODULES = dict.fromkeys(("Config", "flatten", "with_values"), "schema")


def __getattr__(name: str) -> Any:
    """Load on first use, so that the options can be named without a YAML reader and pydantic."""
    if name in __all__:
        return pkgutil.resolve_name(f"expand.config.{_MODULES.get(name, 'load')}:{name}")
    raise AttributeError(f"module 'expand.config' has no attribute '{name}'")
