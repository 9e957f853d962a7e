"""Loading a trained network from a run, a training, or a file of weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from expand.config.schema import GridConfig
from expand.errors import UsageError, hint
from expand.model.public import OURS, has_first_norm
from expand.model.weights import CLASSIFIER, SHOWN, Checkpoint, fit_state, read_checkpoint
from expand.model.x3d import X3D
from expand.rundir.contents import check_weights, network_of, weights_at
from expand.rundir.paths import FINAL, NETWORK, WEIGHTS, inside
from expand.space.complexity import complexity
from expand.space.factors import PRESETS, Factors
from expand.space.geometry import BASE_DEPTHS, Geometry
from expand.space.network import Network, load_network, preset

logger = logging.getLogger(__name__)

Stages = tuple[tuple[int, int, int], ...]
"""Outer width, inner width and depth of each stage; with the number of classes, they tell networks' weights apart."""
NAME_IT = "say what the network is: xs, s, m, l, xl, x2d or a network's YAML as NETWORK, with --weights {}"
"""The advice on the command line for a file of weights that was given as NETWORK."""


def load_model(source: str | Path, network: str | Path | Network | None = None) -> X3D:
    """Return the network that `source` holds, with its weights, in evaluation mode on the CPU.

    `source`: the directory of a finished run or training, its `final/`, a weights file or training checkpoint of this
    package, a safetensors or .pt2 file, or a checkpoint of SlowFast or PyTorchVideo. `network`: its description, for a
    file without one, or instead of the file's: a published network's name, a network's YAML, or a `Network`. Without
    any description, the factors follow from the weights' shapes; the clip does not, and the log says which was taken.
    `model.network` describes the result, its `first_projection_bn` as in the file.

    Raises `UsageError` for a file that holds no X3D, or one that `network` is not; `RunError` for a run without a
    trained winner.
    """
    path = weights_at(Path(source))
    checkpoint = read_checkpoint(path)
    state, where = checkpoint.state, str(path)
    stages, classes = _stages_of(state, where), _classes_of(checkpoint, where)
    if network is not None:
        chosen = _choose(network, checkpoint.network, classes)
    else:
        chosen = _description(checkpoint, path) or _infer(stages, classes, path)
    chosen = replace(chosen, first_projection_bn=has_first_norm(state))
    _check(chosen, stages, classes, where)
    if complexity(chosen.geometry).params > 2 * sum(tensor.numel() for tensor in state.values()):
        raise UsageError("holds only a part of its network", where=where, fix="copy the file anew, or give another")
    with torch.random.fork_rng(devices=()):  # the initial weights are not used
        model = X3D.of(chosen)
    model.load_state_dict(fit_state(state, model.state_dict(), where=where))
    if checkpoint.remark:
        logger.warning(checkpoint.remark)
    return model.eval()


def load_named(source: str | Path, weights: str | Path | None) -> X3D:
    """Return `source` with its own weights, or the network that `source` names with those of the file `weights`.

    Raises as `load_model`, and `UsageError` for a description without weights.
    """
    check_weights(source, weights)
    return load_model(source) if weights is None else load_model(weights, source)


def _description(checkpoint: Checkpoint, path: Path) -> Network | None:
    """Return the description in a run's network.yaml or in the file itself, None without one."""
    if path.name == WEIGHTS:
        run = path.parent.parent if path.parent.name == FINAL else path.parent
        if (beside := inside(run, path.with_name(NETWORK))).is_file():
            return load_network(beside)
    if checkpoint.doubt is not None:
        raise UsageError(checkpoint.doubt.what, where=checkpoint.doubt.where,
                         fix=hint(command=NAME_IT.format(path),
                                  python="say what the network is: network='xs', or a network's YAML"))
    return checkpoint.network


def _choose(network: str | Path | Network, described: Network | None, classes: int) -> Network:
    """Return the caller's choice. A published network's name gives the factors only; the rest is the file's."""
    if isinstance(network, Network):
        return network
    if not isinstance(network, str) or network.lower() not in PRESETS:
        return network_of(network, classes)
    published = preset(network.lower(), classes)
    return published if described is None else replace(described, name=published.name, factors=published.factors)


# Reading the shapes of weights.


def _stages_of(state: Mapping[str, Tensor], where: str) -> Stages:
    """Return the stages of these weights. Raises `UsageError` if a stage is missing."""
    blocks: dict[int, set[int]] = {}
    for key in state:
        parsed = OURS.parse(key)
        if parsed and parsed[0] is not None:
            blocks.setdefault(parsed[0][0], set()).add(parsed[0][1])
    try:
        stages: Stages = tuple((state[f"stages.{stage}.0.c.weight"].shape[0],
                        state[f"stages.{stage}.0.b.weight"].shape[0], len(blocks[stage])) for stage in sorted(blocks))
    except (KeyError, IndexError):
        stages = ()
    if len(stages) != len(BASE_DEPTHS) or any(0 in stage for stage in stages):
        raise UsageError(f"its weights are no whole X3D, which has {len(BASE_DEPTHS)} stages", where=where,
                         fix="copy the file anew, or give another")
    return stages


def _classes_of(checkpoint: Checkpoint, where: str) -> int:
    """Return the number of classes of a file. Raises `UsageError` if it has no classifier."""
    weight = checkpoint.state.get(CLASSIFIER[0])
    if weight is None or weight.ndim != 2 or not len(weight):
        unknown = [key[:200] for key in checkpoint.unknown[:SHOWN]]
        besides = f"; of its entries {', '.join(unknown)} nothing is known" if unknown else ""
        raise UsageError(f"holds no classifier{besides}", where=where, fix="give the weights of a whole network; a "
                         "training begins with these too: x3d-expand train NETWORK --init FILE")
    return len(weight)


def _stages(geometry: Geometry) -> Stages:
    return tuple((stage[0].outer, stage[0].inner, len(stage)) for stage in geometry.stages)


def _check(network: Network, stages: Stages, classes: int, where: str) -> None:
    """Raise `UsageError` if the weights are not those of `network`, before it is built: a description can ask for any
    size."""
    if network.classes != classes:
        raise UsageError(f"has {classes} classes, and network '{network.name}' has {network.classes}", where=where,
                         fix="give the network of these weights")
    expected = _stages(network.geometry)
    if expected != stages:
        raise UsageError(f"its weights are not network '{network.name}': {_text(stages)}, not {_text(expected)}",
                         where=where, fix="give the network of these weights, or none to read it off them")


def _text(stages: Stages) -> str:
    outers, inners, depths = ("/".join(map(str, numbers)) for numbers in zip(*stages, strict=True))
    return f"{depths} blocks of {outers} channels ({inners} inside)"


def _infer(stages: Stages, classes: int, path: Path) -> Network:
    """Return the first published network with these shapes, else one with factors on the grids."""
    fitting = [name for name, factors in PRESETS.items() if _stages(Geometry.of(factors, classes)) == stages]
    if fitting:
        network = Network(fitting[0], PRESETS[fitting[0]], classes)
    else:
        network = Network(path.stem, _solve(stages, str(path)), classes)
    factors = network.factors
    clip = f"clips of {factors.frames} frames x stride {factors.stride}, {factors.resolution} px"
    if len(fitting) == 1:
        logger.warning(f"{path}: the weights have the shapes of X3D-{fitting[0].upper()}; taken with its {clip}")
        return network
    others = (f"X3D-{fitting[0].upper()}'s; {' and '.join(fitting[1:])} have the same weights" if fitting
              else "X3D-XS's; the network is not a published one")
    way_out = hint(command=NAME_IT.format(path), python="network=... chooses")
    logger.warning(f"{path}: weights do not tell their clip. Taken: {clip}, {others}; {way_out}")
    return network


def _solve(stages: Stages, where: str) -> Factors:
    """Return the factors with these shapes: gamma_w, gamma_b and gamma_d on the search's default grids (of several, the
    largest), and the clip of XS."""
    outer, inner, depth = stages[0]
    grid, found = GridConfig(), PRESETS["x2d"]
    first = Geometry.of(found, 1).stages[0][0].outer
    windows = {  # outside, the first stage has other shapes: widths are rounded by up to 8, the others to whole numbers
        "gamma_w": (grid.width, (outer - 8) / first, (outer + 8) / first),
        "gamma_b": (grid.bottleneck, inner / outer, (inner + 1) / outer),
        "gamma_d": (grid.depth, depth - 1, depth)}
    for known, (name, (step, low, high)) in enumerate(windows.items(), start=1):  # each rests on those before it
        lowest = max(0, int(low / step) - 1)
        values = [round(k * step, 6) for k in range(int(high / step) + 1, lowest, -1)]
        candidates = [Factors(**{**asdict(found), name: value}) for value in values]
        fitting = [factors for factors in candidates if [shape[:known] for shape in stages] == [
            shape[:known] for shape in _stages(Geometry.of(factors, 1))]]
        if not fitting:
            raise UsageError(f"no factors on the grids give its shapes: {_text(stages)}", where=where,
                             fix=hint(command=NAME_IT.format(where),
                                      python="say what the network is: network=... with a network's YAML"))
        found = fitting[0]
    return replace(PRESETS["xs"], gamma_w=found.gamma_w, gamma_b=found.gamma_b, gamma_d=found.gamma_d)
