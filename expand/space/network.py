"""A network's description as YAML, and networks by name."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from expand.errors import UsageError, did_you_mean
from expand.space.complexity import complexity_of
from expand.space.factors import PRESETS, PUBLISHED_CLASSES, Factors

MAX_BYTES = 1_000_000
BOUNDS = {"gamma_tau": (1, 10_000), "gamma_t": (1, 10_000), "gamma_s": (32 / 112, 100.0), "gamma_w": (0.01, 100.0),
          "gamma_b": (0.01, 100.0), "gamma_d": (0.01, 1000.0)}
"""Values outside are taken for mistakes."""


@dataclass(frozen=True)
class Network:
    """A network's name, factors and number of classes."""

    name: str
    factors: Factors
    classes: int


def dump_network(factors: Factors, classes: int, *, name: str) -> str:
    """The YAML of a network; `load_network` reads it back. The costs are for the reader and are not read."""
    cost = complexity_of(factors, classes)
    text = yaml.safe_dump({"network": name, "classes": classes, "factors": factors.as_dict()}, sort_keys=False)
    return (f"# X3D network: {factors.frames} frames x stride {factors.stride}, {factors.resolution} px; "
            f"{cost.gflops:.6g} GFLOPs, {cost.params:,} parameters\n{text}")


def preset(name: str) -> Network:
    """A published network (`xs`, `s`, `m`, `l`, `xl`, `x2d`) with 400 classes. Raises `UsageError` for other names."""
    if name not in PRESETS:
        raise UsageError(f"no network is called '{name}'",
                         fix=did_you_mean(name, PRESETS) or f"known: {', '.join(PRESETS)}")
    return Network(name, PRESETS[name], PUBLISHED_CLASSES)


def find_network(source: str) -> Network:
    """The network that `source` names: a preset or a network's YAML. Raises `UsageError` where it names none."""
    path = Path(source)
    if path.suffix in (".yaml", ".yml") or os.path.exists(path):  # False for a name no file can have
        return load_network(path)
    if source.lower() in PRESETS:
        return preset(source.lower())
    raise UsageError(f"no network, file or run is called '{source}'", fix=did_you_mean(source.lower(), PRESETS) or
                     f"give one of {', '.join(PRESETS)}, a network's YAML file, or a run's directory")


def load_network(path: Path) -> Network:
    """Reads a network's YAML. Raises `UsageError` naming everything that is wrong with it."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"is larger than {MAX_BYTES} bytes", where=str(path))
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"is not YAML: {str(error).splitlines()[0]}", where=str(path)) from error
    problems = list(_problems(content))
    if problems:
        raise UsageError("; ".join(problems), where=str(path),
                         fix="a network has 'network', 'classes' and 'factors' with the six gammas")
    gammas = {f.name: (int if f.type == "int" else float)(content["factors"][f.name]) for f in fields(Factors)}
    return Network(str(content.get("network", path.stem)), Factors(**gammas), content["classes"])


def _problems(content: Any) -> Any:
    if not isinstance(content, dict) or not isinstance(content.get("factors"), dict):
        yield "no mapping 'factors'"
        return
    if not isinstance(content.get("classes"), int) or not 1 <= content["classes"] <= 1_000_000:
        yield "'classes' is not a positive whole number"
    names = [f.name for f in fields(Factors)]
    for name in content["factors"]:
        if name not in names:
            yield f"unknown factor '{name}'" + (f", {hint}" if (hint := did_you_mean(str(name), names)) else "")
    for f in fields(Factors):
        value, (low, high) = content["factors"].get(f.name), BOUNDS[f.name]
        if isinstance(value, bool) or not isinstance(value, int if f.type == "int" else (int, float)):
            yield f"'factors.{f.name}' is not a {'whole ' if f.type == 'int' else ''}number"
        elif not low <= value <= high:
            yield f"'factors.{f.name}' is {value}, outside {low:g} to {high:g}"
