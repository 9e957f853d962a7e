"""Ready configurations, found by name from a checkout and from an installed wheel alike."""

from __future__ import annotations

import os
from pathlib import Path

from expand.errors import UsageError, did_you_mean

DEFAULT = "default"


def ready_folder() -> Path:
    """`search_configs/`: in a wheel inside the package, in a checkout linked from there to the top of the tree."""
    package = Path(__file__).parent.parent
    inside = package / "search_configs"
    # A copy of the tree made without symbolic links still has the folder at its top.
    return (inside if inside.is_dir() else package.parent / "search_configs").resolve()


def config_names() -> list[str]:
    """The names of the ready configurations, sorted."""
    return sorted(path.stem for path in ready_folder().glob("*.yaml"))


def find(source: str | Path | None) -> Path:
    """The file of a configuration given by path or by ready name (None: `default`); UsageError where there is none."""
    if source is None:
        source = DEFAULT
    if isinstance(source, str) and source in config_names():
        return ready_folder() / f"{source}.yaml"
    path = Path(source)
    text = str(source)
    if os.path.isdir(path):  # unlike Path.is_dir, no error for a name that is too long or holds a NUL
        raise UsageError(f"'{text}' is a folder, not a configuration", fix="name a folder of clips with --data")
    if os.path.exists(path):
        return path
    if isinstance(source, Path) or os.sep in text or path.suffix in (".yaml", ".yml"):
        what = f"there is no file '{text}'"
    else:
        what = f"there is no configuration '{text}'"
    close = did_you_mean(path.stem, config_names())
    ready = f"ready by name: {', '.join(config_names())}; or give the path of a YAML file"
    raise UsageError(what, fix=f"{close} {ready}" if close else ready)
