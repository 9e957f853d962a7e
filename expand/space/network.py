"""A network's description as YAML, and networks by name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from expand.errors import UsageError, did_you_mean
from expand.space.complexity import complexity_of
from expand.space.factors import BASE_RESOLUTION, PRESETS, PUBLISHED_CLASSES, Factors
from expand.space.geometry import BASE_DEPTHS, BASE_WIDTH, WIDTH_FACTOR, Geometry, stage_widths
from expand.untrusted_input import LARGEST_YAML, LONGEST_SHOWN, show_value, size_text

MAX_BYTES = LARGEST_YAML
BOUNDS = {"gamma_tau": (1, 10_000), "gamma_t": (1, 10_000), "gamma_s": (32 / 112, 100.0), "gamma_w": (0.01, 100.0),
          "gamma_b": (0.01, 100.0), "gamma_d": (0.01, 100.0)}
WEIGHTS = (".pt", ".pth", ".pyth", ".safetensors", ".pt2", ".onnx")
"""How names of files end that hold weights."""
LARGEST_CLIP = 10**9
"""Pixels of a clip: some 600 times as many as the largest published network takes."""
LARGEST_PARAMS = 10**9
"""Weights of the blocks: some 100 times as many as the largest published network has, four gigabytes."""
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
        """Return the description as plain values, as its YAML holds it; `Network.from_dict` is the inverse."""
        names = None if self.class_names is None else list(self.class_names)
        return {"network": self.name, "classes": self.classes, "factors": self.factors.as_dict(), "mean": self.mean,
                "std": self.std, "first_projection_bn": self.first_projection_bn, "class_names": names}

    @classmethod
    def from_dict(cls, content: Any, *, where: str, name: str = "network", classes: int | None = None) -> Network:
        """Return a network from plain values, which may be untrusted; `name` is that of one which has none, `classes`
        the number of them where it says neither that nor their names.

        Raises `UsageError` naming everything that is wrong with them, and `where` they stand.
        """
        if isinstance(content, dict) and content.get("classes") is None:
            names = content.get("class_names")
            content = {**content, "classes": len(names) if isinstance(names, list) and names else classes}
        problems = list(_problems(content))
        if problems:
            raise UsageError("; ".join(problems), where=where,
                             fix="a network has 'network', 'classes' and 'factors' with the six gammas")
        gammas: dict[str, Any] = {f.name: (int if f.type == "int" else float)(content["factors"][f.name])
                                  for f in fields(Factors)}
        names = content.get("class_names")
        return cls(str(content.get("network", name)), Factors(**gammas), content["classes"],
                   None if names is None else tuple(names), float(content.get("mean", cls.mean)),
                   float(content.get("std", cls.std)), content.get("first_projection_bn", cls.first_projection_bn))


def dump_network(network: Network) -> str:
    """Return the YAML of a network; `load_network` reads it back. The costs are for the reader and are not read. Raises
    `UsageError` where it would be larger than may be read."""
    from expand.config import yaml_document

    factors, cost = network.factors, complexity_of(network.factors, network.classes)
    text = (f"# X3D network: {factors.frames} frames x stride {factors.stride}, {factors.resolution} px; "
            f"{cost.gflops:.6g} GFLOPs, {cost.params:,} parameters\n{yaml_document.dump(network.as_dict())}")
    if len(text.encode("utf-8")) > MAX_BYTES:  # it could not be read again
        raise UsageError(f"the names of its {network.classes:,} classes take more than {size_text(MAX_BYTES)}",
                         where=network.name, fix="shorten them")
    return text


def preset(name: str, classes: int = PUBLISHED_CLASSES) -> Network:
    """Return a published network: `xs`, `s`, `m`, `l`, `xl` or `x2d`. Raises `UsageError` for other names."""
    if name not in PRESETS:
        raise UsageError(f"no network is called '{name}'",
                         fix=did_you_mean(name, PRESETS) or f"known: {', '.join(PRESETS)}")
    return Network(name, PRESETS[name], classes)


def find_network(source: str, classes: int | None = None) -> Network:
    """Return the network that `source` names: a preset or a network's YAML, with `classes` where the YAML does not say
    how many. Raises `UsageError` where it names none."""
    path = Path(source)
    if path.suffix.lower() in WEIGHTS:
        raise UsageError("is a file of weights, not a network's description", where=source,
                         fix="name the network (a run, a YAML file, xs to xl), "
                             "and give the weights as --init or --weights")
    if path.suffix in (".yaml", ".yml") or os.path.exists(source):  # False for a name no file can have
        return load_network(path, classes)
    if source.lower() in PRESETS:
        return preset(source.lower())
    raise UsageError(f"no network, file or run is called '{source}'", fix=did_you_mean(source.lower(), PRESETS) or
                     f"give one of {', '.join(PRESETS)}, a network's YAML file, or a run's directory")


def load_network(path: Path, classes: int | None = None) -> Network:
    """Read a network's YAML; `classes` are taken where it does not say how many. Raises `UsageError` naming everything
    that is wrong with it."""
    from expand.config import yaml_document  # a YAML reader, which those that know their networks do without

    try:
        content = yaml_document.parse_values(yaml_document.read_regular_file(path))
    except yaml_document.NotYaml as error:
        raise UsageError(error.what,
                         where=f"{path}:{error.line}" if error.line else str(path), fix=error.suggestion) from error
    return Network.from_dict(content, where=str(path), name=path.stem, classes=classes)


_MOST_SHOWN = 20
"""Unknown names that are told one by one."""


def _problems(content: Any) -> Iterator[str]:
    """Give a sentence for each fault of plain values that should be a network."""
    if not isinstance(content, dict) or not isinstance(content.get("factors"), dict):
        yield "no mapping 'factors'"
        return
    if content.get("classes") is None:
        yield "'classes', their number, is missing"
    elif not isinstance(content["classes"], int) or not 1 <= content["classes"] <= 1_000_000:
        yield "'classes' is not a positive whole number"
    yield from factor_problems(content["factors"])
    for name, (low, high) in PIXEL_BOUNDS.items():
        value = content.get(name, high)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            yield f"'{name}' is not a number from {low:g} to {high:g}"
    if not isinstance(content.get("first_projection_bn", True), bool):
        yield "'first_projection_bn' is neither true nor false"
    names = content.get("class_names")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)
                                  and len(names) == content.get("classes")):
        yield "'class_names' is not a list of as many texts as there are 'classes'"


def factor_problems(factors: Any) -> Iterator[str]:
    """Give a sentence for each fault of plain values that should be `Factors`, and may be untrusted. Of values that
    pass, the network can be built."""
    if not isinstance(factors, dict):
        yield "no mapping 'factors'"
        return
    names, wrong = [f.name for f in fields(Factors)], False
    for name in list(factors)[:_MOST_SHOWN]:
        if name not in names:
            hint = did_you_mean(str(name)[:LONGEST_SHOWN], names)
            yield f"unknown factor {show_value(name)}" + (f", {hint}" if hint else "")
    for f in fields(Factors):
        value: Any = factors.get(f.name)
        low, high = BOUNDS[f.name]
        is_number = isinstance(value, int if f.type == "int" else (int, float)) and not isinstance(value, bool)
        wrong = wrong or not (is_number and low <= value <= high)
        if not is_number:
            yield f"'factors.{f.name}' is not a {'whole ' if f.type == 'int' else ''}number"
        elif not low <= value <= high:
            yield f"'factors.{f.name}' is {show_value(value)}, outside {low:g} to {high:g}"
    if wrong or len(factors) != len(names):
        return

    # Factors that are each within their bounds may make too much together; a rough, fast count tells.
    pixels = factors["gamma_t"] * (factors["gamma_s"] * BASE_RESOLUTION) ** 2
    if pixels > LARGEST_CLIP:
        yield f"its clip would have {pixels:.2g} pixels, more than {LARGEST_CLIP:,}"
    widths = [WIDTH_FACTOR * factors["gamma_w"] * BASE_WIDTH * 2**stage for stage in range(len(BASE_DEPTHS))]
    params = sum(2 * factors["gamma_b"] * width**2 * (depth * factors["gamma_d"] + 1)
                 for width, depth in zip(widths, BASE_DEPTHS, strict=True))
    if params > LARGEST_PARAMS:
        yield f"it would have {params:.2g} weights, more than {LARGEST_PARAMS:,}"
    if any(inner < 1 for _, inner in stage_widths(factors["gamma_w"], factors["gamma_b"])):
        yield f"'factors.gamma_b' is {factors['gamma_b']:g}, which leaves blocks without a filter"


def is_within_bounds(factors: Factors) -> bool:
    """Return True if a network of `factors` can be described and built: see `factor_problems`."""
    return next(factor_problems(factors.as_dict()), None) is None
