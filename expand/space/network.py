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
from expand.space.geometry import Geometry

MAX_BYTES = 1_000_000
BOUNDS = {"gamma_tau": (1, 10_000), "gamma_t": (1, 10_000), "gamma_s": (32 / 112, 100.0), "gamma_w": (0.01, 100.0),
          "gamma_b": (0.01, 100.0), "gamma_d": (0.01, 1000.0)}
WEIGHTS = (".pt", ".pth", ".pyth", ".safetensors", ".pt2", ".onnx")
"""How names of files end that hold weights."""
PIXEL_BOUNDS = {"mean": (0.0, 1.0), "std": (1e-6, 1.0)}
"""Values outside are taken for mistakes."""


@dataclass(frozen=True)
class Network:
    """A network as it is handed over: what it is, and what a clip must look like for it.

    `classes` is their number, `class_names` their names in the order of the logits where they are known. A clip's
    pixels in [0, 1] are normalised to (pixel - `mean`) / `std`. `first_projection_bn`: see `Geometry.of`.
    """

    name: str
    factors: Factors
    classes: int
    class_names: tuple[str, ...] | None = None
    mean: float = 0.45
    std: float = 0.225
    first_projection_bn: bool = True

    @property
    def geometry(self) -> Geometry:
        """The shapes of its layers."""
        return Geometry.of(self.factors, self.classes, first_projection_bn=self.first_projection_bn)

    def as_dict(self) -> dict[str, Any]:
        """The description as plain values, as its YAML holds it; `Network.from_dict` is the inverse."""
        names = None if self.class_names is None else list(self.class_names)
        return {"network": self.name, "classes": self.classes, "factors": self.factors.as_dict(), "mean": self.mean,
                "std": self.std, "first_projection_bn": self.first_projection_bn, "class_names": names}

    @classmethod
    def from_dict(cls, content: Any, *, where: str, name: str = "network") -> Network:
        """A network from plain values, which may be a stranger's; `name` is that of one which has none.

        Raises `UsageError` naming everything that is wrong with them, and `where` they stand.
        """
        problems = list(_problems(content))
        if problems:
            raise UsageError("; ".join(problems), where=where,
                             fix="a network has 'network', 'classes' and 'factors' with the six gammas")
        gammas = {f.name: (int if f.type == "int" else float)(content["factors"][f.name]) for f in fields(Factors)}
        names = content.get("class_names")
        return cls(str(content.get("network", name)), Factors(**gammas), content["classes"],
                   None if names is None else tuple(names), float(content.get("mean", cls.mean)),
                   float(content.get("std", cls.std)), content.get("first_projection_bn", cls.first_projection_bn))


def dump_network(network: Network) -> str:
    """The YAML of a network; `load_network` reads it back. The costs are for the reader and are not read."""
    factors, cost = network.factors, complexity_of(network.factors, network.classes)
    text = yaml.safe_dump(network.as_dict(), sort_keys=False, allow_unicode=True)
    return (f"# X3D network: {factors.frames} frames x stride {factors.stride}, {factors.resolution} px; "
            f"{cost.gflops:.6g} GFLOPs, {cost.params:,} parameters\n{text}")


def preset(name: str, classes: int = PUBLISHED_CLASSES) -> Network:
    """A published network: `xs`, `s`, `m`, `l`, `xl` or `x2d`. Raises `UsageError` for other names."""
    if name not in PRESETS:
        raise UsageError(f"no network is called '{name}'",
                         fix=did_you_mean(name, PRESETS) or f"known: {', '.join(PRESETS)}")
    return Network(name, PRESETS[name], classes)


def find_network(source: str) -> Network:
    """The network that `source` names: a preset or a network's YAML. Raises `UsageError` where it names none."""
    path = Path(source)
    if path.suffix.lower() in WEIGHTS:
        raise UsageError("is a file of weights, not a network's description", where=source,
                         fix="name the network (a run, a YAML file, xs to xl), "
                             "and give the weights as --init or --weights")
    if path.suffix in (".yaml", ".yml") or os.path.exists(source):  # False for a name no file can have
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
    return Network.from_dict(content, where=str(path), name=path.stem)


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
    yield from _problems_of_the_clip(content)


def _problems_of_the_clip(content: dict[str, Any]) -> Any:
    for name, (low, high) in PIXEL_BOUNDS.items():
        value = content.get(name, high)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            yield f"'{name}' is not a number from {low:g} to {high:g}"
    if not isinstance(content.get("first_projection_bn", True), bool):
        yield "'first_projection_bn' is neither true nor false"
    names = content.get("class_names")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)
                                  and len(names) == content["classes"]):
        yield "'class_names' is not a list of as many texts as there are 'classes'"
