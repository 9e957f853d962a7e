"""Loading weights: a whole network from a run, a training or a file, or a file's weights into an existing network."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from expand.config.schema import GridConfig
from expand.errors import UsageError, hint
from expand.model import public
from expand.model.public import State
from expand.model.weights import CLASSIFIER, Checkpoint, name_some, read_checkpoint
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
HEAD = ("head.inner", "head.inner_bn", "head.features", "head.classifier")
"""The head's modules with weights, in the order in which they compute."""
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
    stages, classes = _shapes_of(checkpoint, where)
    if network is None:
        chosen = _description(checkpoint, path) or _infer(stages, classes, path)
    elif isinstance(network, Network):
        chosen = network
    elif isinstance(network, str) and network.lower() in PRESETS:  # names the factors only; the rest is the file's
        published, described = preset(network.lower(), classes), checkpoint.network
        chosen = replace(described or published, name=published.name, factors=published.factors)
    else:
        chosen = network_of(network, classes)
    chosen = replace(chosen, first_projection_bn=public.has_first_norm(state))
    # before the network is built: a description can ask for any size
    if chosen.classes != classes:
        raise UsageError(f"has {classes} classes, and network '{chosen.name}' has {chosen.classes}", where=where,
                         fix="give the network of these weights")
    if (expected := _stages(chosen.geometry)) != stages:
        raise UsageError(f"its weights are not network '{chosen.name}': {_sizes_of(stages)}, not "
                         f"{_sizes_of(expected)}", where=where,
                         fix="give the network of these weights, or none to read it off them")
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


def load_checkpoint(model: X3D, path: str | Path) -> None:
    """Load a file's weights into `model`, which in evaluation then computes exactly what the file's own network does.

    A batch norm on a shortcut that only one of the two has is folded, or added as an identity. Classes that both know
    by name are matched by name; a classifier of other classes is left as it is, and so is one that the file lacks, or
    has under a name of its own; the log says so. Raises `UsageError` for entries that do not fit, naming them all, and
    for weights that are not finite, before the model is changed.
    """
    checkpoint = read_checkpoint(path)
    targets = model.state_dict()
    state, remark = dict(checkpoint.state), None
    weight = state.get(CLASSIFIER[0])
    if weight is None:
        state, remark = _keep_head(checkpoint, targets, path)
    elif weight.ndim == 2:
        rows = _rows(checkpoint.network, len(weight), model)
        if rows is None:
            remark = (f"{path}: the classifier keeps its initial weights: {_classes(checkpoint.network, len(weight))} "
                      f"there, {_classes(model.network, model.geometry.classes)} here")
        for key in CLASSIFIER:
            if key in state and state[key].shape[:1] == weight.shape[:1]:  # else it is damaged, and listed so
                state[key] = targets[key] if rows is None else state[key][rows]
    model.load_state_dict(fit_state(state, targets, where=str(path)))
    for text in (checkpoint.remark, remark):
        if text:
            logger.warning(text)


def _keep_head(checkpoint: Checkpoint, targets: Mapping[str, Tensor], path: str | Path) -> tuple[State, str | None]:
    """Return a file's weights completed with the classifier of `targets`, and a remark; if the file lacks more of the
    last layers, with all of those. Entries that it has in their place, under other names, are left out."""
    state, trunk = dict(checkpoint.state), re.compile(public.STYLES[checkpoint.style].trunk)
    parts = [[key for key in targets if key.startswith(f"{module}.")] for module in HEAD]
    present = [any(key in state for key in part) for part in parts]
    known = sum(present)
    if any(present[known:]) or known == len(HEAD):  # a layer in between is missing, and listed so
        return state, None
    left_out = [key for key in checkpoint.unknown if not trunk.match(key)]
    for key in left_out:
        state.pop(key, None)
    new = [key for part in parts[known:] for key in part]
    state.update({key: targets[key] for key in new})
    what = "the classifier keeps its" if known == len(HEAD) - 1 else "the last layers keep their"
    return state, (f"{path}: {what} initial weights: the file has none under the names that are known"
                   + (f"; left out of it: {name_some(left_out)}" if left_out else ""))


def _rows(theirs: Network | None, count: int, model: X3D) -> list[int] | None:
    """Return for each class of `model` its row in a classifier of `count` classes, None if the classes differ. If one
    side has no names, an equal number is taken as the same classes."""
    names, ours = theirs and theirs.class_names, model.network and model.network.class_names
    if count != model.geometry.classes:
        return None
    if not names or not ours or len(names) != count:
        return list(range(count))
    places = {name: row for row, name in enumerate(names)}
    return [places[name] for name in ours] if places.keys() == set(ours) else None


def _classes(network: Network | None, count: int) -> str:
    names = ", ".join((network and network.class_names or ())[:3])
    return f"{network.name if network else 'a network'} with {count} classes" + (f" ({names}, ...)" if names else "")


def fit_state(state: Mapping[str, Tensor], targets: Mapping[str, Tensor], *, where: str) -> State:
    """Return `state` in the form that a network with the state dict `targets` loads.

    Raises `UsageError` for entries that do not fit, naming them all, and for weights that are not finite.
    """
    state = public.fit_shortcuts(state, targets)
    for key in targets:
        if key.endswith("num_batches_tracked"):  # files of other tools lack them, and nothing is computed from them
            state.setdefault(key, torch.zeros((), dtype=torch.long))
    wrong = {
        "missing": [key for key in targets if key not in state],
        "unexpected": [key for key in state if key not in targets],
        "of another shape": [f"{key} ({_shape(state[key])}, not {_shape(targets[key])})" for key in targets
                             if key in state and state[key].shape != targets[key].shape]}
    if any(wrong.values()):
        listed = "; ".join(f"{len(keys)} {kind}: {name_some(keys)}" for kind, keys in wrong.items() if keys)
        raise UsageError(f"its weights do not fit the network: {listed}", where=where,
                         fix="load it into the network that it was made from")
    if bad := [key for key, tensor in state.items() if not torch.isfinite(tensor).all()]:
        raise UsageError(f"{len(bad)} of its weights are not finite: {name_some(bad)}", where=where,
                         fix="its training failed; use an earlier checkpoint")
    return state


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


# --- the shapes of weights ---


def _shapes_of(checkpoint: Checkpoint, where: str) -> tuple[Stages, int]:
    """Return the stages and the number of classes of a file's weights. Raises `UsageError` if a stage or the classifier
    is missing."""
    state = checkpoint.state
    places = {parsed[0] for key in state if (parsed := public.OURS.parse(key)) and parsed[0] is not None}
    depths = Counter(stage for stage, _ in places)
    try:
        stages: Stages = tuple(
            (state[f"stages.{stage}.0.c.weight"].shape[0], state[f"stages.{stage}.0.b.weight"].shape[0], depths[stage])
            for stage in sorted(depths))
    except (KeyError, IndexError):
        stages = ()
    if len(stages) != len(BASE_DEPTHS) or any(0 in stage for stage in stages):
        raise UsageError(f"its weights are no whole X3D, which has {len(BASE_DEPTHS)} stages", where=where,
                         fix="copy the file anew, or give another")
    weight = state.get(CLASSIFIER[0])
    if weight is None or weight.ndim != 2 or not len(weight):
        unknown = name_some(checkpoint.unknown)
        besides = f"; of its entries {unknown} nothing is known" if unknown else ""
        raise UsageError(f"holds no classifier{besides}", where=where, fix="give the weights of a whole network; a "
                         "training begins with these too: x3d-expand train NETWORK --init FILE")
    return stages, len(weight)


def _stages(geometry: Geometry) -> Stages:
    return tuple((stage[0].outer, stage[0].inner, len(stage)) for stage in geometry.stages)


def _sizes_of(stages: Stages) -> str:
    """Return depths and widths in words."""
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
            raise UsageError(f"no factors on the grids give its shapes: {_sizes_of(stages)}", where=where,
                             fix=hint(command=NAME_IT.format(where),
                                      python="say what the network is: network=... with a network's YAML"))
        found = fitting[0]
    return replace(PRESETS["xs"], gamma_w=found.gamma_w, gamma_b=found.gamma_b, gamma_d=found.gamma_d)
