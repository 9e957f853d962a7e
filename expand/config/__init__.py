"""The configuration: typed sections (`schema`), and YAML, flags and `--set` read into them (`load`)."""

from __future__ import annotations

from expand.config.load import config_diff, dump_config, load_config, parse_config
from expand.config.options import flatten, with_values
from expand.config.ready import config_names
from expand.config.schema import Config

__all__ = ["Config", "config_diff", "config_names", "dump_config", "flatten", "load_config", "parse_config",
           "with_values"]
