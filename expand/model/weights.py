"""Weights in and out: this package's, SlowFast's, PyTorchVideo's and MMAction2's files
(docs/decisions/005-public-weights.md).

Files are untrusted input: nothing in them is run, and nothing is built from them that is larger than they are.
"""

from __future__ import annotations

import logging
import pickle
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import yaml
from torch import Tensor

from expand.errors import UsageError
from expand.model import archive, public
from expand.model.exported import read_torch_export
from expand.model.foreign_files import check_kind
from expand.model.wrapped_weights import Group, find_groups, find_tensors
from expand.model.x3d import X3D
from expand.rundir.files import atomic_path, from_json, to_json, write_atomic
from expand.space.network import MAX_BYTES, Network
from expand.untrusted_input import file_type

logger = logging.getLogger(__name__)

State = dict[str, Tensor]

CLASSIFIER = ("head.classifier.weight", "head.classifier.bias")
HEAD = ("head.inner", "head.inner_bn", "head.features", "head.classifier")
"""The head's modules with weights, in the order in which they compute."""
SHOWN = 10
"""Entries of a kind that an error lists."""
ANEW = "copy it anew, or give a checkpoint of x3d-expand, SlowFast, PyTorchVideo or MMAction2"
NEEDED = "a checkpoint of x3d-expand, SlowFast, PyTorchVideo or MMAction2 is needed"
ALONE = ("where you trust it, load it with the code that wrote it and save its weights alone: "
         "torch.save(model.state_dict(), file)")
IN_FOLDER = ("model.safetensors", "pytorch_model.bin", "mp_rank_00_model_states.pt",
             "global_step*/mp_rank_00_model_states.pt")
"""The names of the file of weights in a folder that Hugging Face's libraries or DeepSpeed write."""
WHOLE = ("torch.nn.", "torch.jit.", "torchvision.models", "torch.fx.")
"""Modules of classes that a pickled network consists of."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a file of weights: `state` in our names, the `style` of its own names ('x3d-expand', 'slowfast',
    'pytorchvideo' or 'mmaction2'), `network` if the file describes it.

    `doubt` is the reason why its description cannot be used, `remark` says which of several sets of weights was taken.
    `unknown` are the names of entries that no X3D has: first those in `state`, then those outside of the network."""

    state: State
    style: str
    network: Network | None
    doubt: UsageError | None = None
    remark: str | None = None
    unknown: tuple[str, ...] = ()


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a file of weights, whatever its name: ours (weights, a training's checkpoint, safetensors, .pt2),
    SlowFast's, PyTorchVideo's or MMAction2's, a bare state dict too, and any of them as trainers wrap them
    (`expand.model.wrapped_weights`).

    Raises `UsageError` for any other file, and for one that is damaged or would run code.
    """
    path = Path(path)
    if path.suffix.lower() == ".pt2":
        described, weights = read_torch_export(path)
        return Checkpoint(weights, public.OURS.name, described)
    content = _read(path)
    groups = find_groups(content)
    if not groups:
        raise _no_x3d(content, path)
    group, style = groups[0], groups[0].style
    tensors = _tensors(group, path)
    state = {public.translate(key, style, public.OURS) or key: tensor for key, tensor in tensors.items()}
    if len(state) != len(tensors):
        raise UsageError("names one weight twice", where=str(path))
    if style is public.MMACTION and "stem.spatial.weight" not in state:  # its other networks have the same names
        raise _no_x3d(content, path)
    # the head's last layers may be 1x1x1 convolutions or linear layers, which compute the same
    features, classifier = state.get("head.features.weight"), state.get(CLASSIFIER[0])
    if features is not None and features.ndim == 2:
        state["head.features.weight"] = features[:, :, None, None, None]
    if classifier is not None and classifier.ndim > 2 and classifier.shape[2:].numel() == 1:
        state[CLASSIFIER[0]] = classifier.flatten(1)
    network: Network | None = None
    doubt: UsageError | None = None
    try:
        network = _description(group, path)
    except UsageError as error:
        doubt = error
    is_ours = isinstance(content, Mapping) and content.keys() >= {"version", "network", "model"}
    rivals = [other.place for other in groups[1:] if other.count == group.count]
    remark = f"{path}: of several sets of weights, {group.place} is taken, not {_some(rivals)}" \
        if rivals and not is_ours else None
    unknown = (*(key for key in tensors if style.parse(key) is None), *group.others)
    return Checkpoint(state, style.name, network, doubt, remark, unknown)


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
                   + (f"; left out of it: {_some(left_out)}" if left_out else ""))


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
    state = public.as_in(state, targets)
    for key in targets:
        if key.endswith("num_batches_tracked"):  # files of other tools lack them, and nothing is computed from them
            state.setdefault(key, torch.zeros((), dtype=torch.long))
    wrong = {
        "missing": [key for key in targets if key not in state],
        "unexpected": [key for key in state if key not in targets],
        "of another shape": [f"{key} ({_shape(state[key])}, not {_shape(targets[key])})" for key in targets
                             if key in state and state[key].shape != targets[key].shape]}
    if any(wrong.values()):
        listed = "; ".join(f"{len(keys)} {kind}: {_some(keys)}" for kind, keys in wrong.items() if keys)
        raise UsageError(f"its weights do not fit the network: {listed}", where=where,
                         fix="load it into the network that it was made from")
    if bad := [key for key, tensor in state.items() if not torch.isfinite(tensor).all()]:
        raise UsageError(f"{len(bad)} of its weights are not finite: {_some(bad)}", where=where,
                         fix="its training failed; use an earlier checkpoint")
    return state


def save_slowfast(model: X3D, path: str | Path) -> list[Path]:
    """Write a checkpoint that SlowFast loads, and its configuration beside it (.yaml); return both paths.

    If SlowFast's own X3D rounds to other widths, both are for its PTVX3D (`expand.model.public`). Raises `UsageError`
    if neither builds this network, and for a model without a description.
    """
    path, network = Path(path), _network_of(model)
    beside = path.with_suffix(".yaml")
    if beside == path:
        raise UsageError("is the name of the configuration beside the checkpoint", where=str(path),
                         fix=f"name the checkpoint {path.with_suffix('.pyth')}")
    config = yaml.safe_dump(public.slowfast_config(network, dropout=model.head.dropout.p, checkpoint=path.name),
                            sort_keys=False)
    if public.slowfast_builder(network) == public.NATIVE:
        state, style, prefix = public.as_in_slowfast(_state_of(model)), public.SLOWFAST, ""
    else:
        state, style, prefix = public.as_in_pytorchvideo(_state_of(model)), public.PYTORCHVIDEO, "model."
    # No "epoch": SlowFast would then look for the optimiser's state too when it fine-tunes.
    _save(path, {"model_state": {prefix + key: value for key, value in _translate(state, style).items()},
                 "cfg": config, "network": _describe(network, state)})
    write_atomic(beside, f"# SlowFast's configuration of {path.name}\n{config}")
    return [path, beside]


def save_pytorchvideo(model: X3D, path: str | Path) -> list[Path]:
    """Write a checkpoint whose `model_state` loads strictly into PyTorchVideo's `create_x3d` with width_factor
    2 gamma_w, bottleneck_factor gamma_b, depth_factor gamma_d; return its path.

    Raises `UsageError` if `create_x3d` builds other shapes, and for a model without a description.
    """
    path, network = Path(path), _network_of(model)
    if not public.builds(network, 8):
        raise public.not_buildable(network, "PyTorchVideo")
    state = public.as_in_pytorchvideo(_state_of(model))
    _save(path, {"model_state": _translate(state, public.PYTORCHVIDEO), "network": _describe(network, state)})
    return [path]


def save_safetensors(model: X3D, path: str | Path) -> list[Path]:
    """Write the weights as safetensors, with the network's description as JSON under "network" in the metadata;
    return its path. Raises `UsageError` for a model without a description."""
    path, network = Path(path), _network_of(model)
    metadata = {"format": "pt", "network": to_json(network.as_dict())}
    write_atomic(path, safetensors.torch.save(_state_of(model), metadata))
    return [path]


# Reading.

def _read(path: Path) -> Any:
    """Return the file's content, with its description, if it has one, under "network"."""
    try:
        status = path.stat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):  # a pipe would block for ever
            raise UsageError(f"is {file_type(status.st_mode)}, not a file", where=str(path))
        if stat.S_ISDIR(status.st_mode):
            inside = next((file for name in IN_FOLDER for file in sorted(path.glob(name)) if file.is_file()), None)
            raise UsageError("is a folder, not a file of weights", where=str(path),
                             fix=f"give the file in it: {inside}" if inside else NEEDED)
        with open(path, "rb") as file:
            start = file.read(9)
            if start[8:] == b"{" and int.from_bytes(start[:8], "little") <= status.st_size:
                return _read_safetensors(path)
            check_kind(file, path)
            return archive.load_tensors(file)
    except UsageError:
        raise
    except archive.Calls as error:
        raise _could_run_code(path, error.called) from error
    except archive.Damaged as error:
        raise UsageError(f"is damaged, or is no checkpoint: {error}", where=str(path), fix=ANEW) from error
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    except Exception as error:  # a damaged or hostile file can make a parser fail in any way
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            called = str(error).partition("GLOBAL ")[2].partition(" ")[0]
            raise _could_run_code(path, called) from error
        if isinstance(error, pickle.UnpicklingError) and "operand" in str(error):
            raise UsageError("is pickled in a way that torch reads only together with code (another pickle_protocol "
                             "than torch.save's own); it was not loaded", where=str(path), fix=ALONE) from error
        raise UsageError(f"is no checkpoint, or is damaged ({type(error).__name__})", where=str(path),
                         fix=ANEW) from error


def _read_safetensors(path: Path) -> dict[str, Any]:
    with safetensors.safe_open(path, framework="pt") as file:
        content: dict[str, Any] = {"model": {key: file.get_tensor(key) for key in file.keys()}}  # noqa: SIM118
        text = (file.metadata() or {}).get("network")
    if text is not None:
        if len(text) > MAX_BYTES:
            raise UsageError(f"has a description of more than {MAX_BYTES} bytes", where=str(path))
        content["network"] = from_json(text.encode())
    return content


def _could_run_code(path: Path, called: str) -> UsageError:
    what = "a whole pickled network" if called.startswith(WHOLE) else "Python objects besides weights"
    return UsageError(f"holds {what} ({called or 'not named'}), which could run code; it was not loaded",
                      where=str(path), fix=ALONE)


def _no_x3d(content: Any, path: Path) -> UsageError:
    """Return the error for content without weights that have the names of an X3D."""
    found = find_tensors(content)
    if not found and not isinstance(content, Mapping):
        return UsageError(f"holds a {type(content).__name__}, not weights by name", where=str(path), fix=NEEDED)
    if not found and content:
        keys = [key if isinstance(key, str) else type(key).__name__ for key in content]
        return UsageError(f"{len(keys)} of its entries are not weights: {_some(keys)}", where=str(path), fix=NEEDED)
    return UsageError(f"holds no X3D: its weights are called {_some(found) or 'nothing at all'}", where=str(path),
                      fix=NEEDED)


def _tensors(group: Group, path: Path) -> State:
    """Return the weights of a group, floats as float32. No entry may claim more than the file holds: a tensor of stride
    0 takes four bytes there, and any number here. Counters and single numbers that are not the network's are
    ignored."""
    def is_weight(key: str, value: Tensor) -> bool:
        return bool(value.layout is torch.strided and value.numel() and value.device.type == "cpu"
                    and not value.is_quantized and (value.is_floating_point() or key.endswith("num_batches_tracked")))

    known = {key for key in group.entries if group.style.parse(key) is not None}
    unfit = [key for key, value in group.entries.items() if key in known and not is_weight(key, value)]
    if unfit:
        raise UsageError(f"{len(unfit)} of its entries are not weights: {_some(unfit)}", where=str(path), fix=NEEDED)
    weights = {key: value for key, value in group.entries.items()
               if key in known or (value.ndim and is_weight(key, value))}
    if sum(value.numel() * value.element_size() for value in weights.values()) > path.stat().st_size:
        raise UsageError("claims more weights than it holds", where=str(path))
    return {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}


def _description(group: Group, path: Path) -> Network | None:
    """Return the network that the innermost dictionary around the weights describes, None without a description."""
    for holder in reversed(group.holders):
        if not isinstance(holder, Mapping):
            continue
        described = holder.get("network")
        if described is not None and not any(described is other for other in group.holders) and not isinstance(
                described, (str, Tensor)):
            return Network.from_dict(described, where=str(path))
        of_slowfast = group.style in (public.SLOWFAST, public.PYTORCHVIDEO) and "model_state" in holder
        if of_slowfast and holder.get("cfg") is not None:
            network = public.network_of_config(holder["cfg"], where=str(path), name=path.stem)
            return replace(network, first_projection_bn=group.style is public.SLOWFAST)
    return None


# Writing.

def _network_of(model: X3D) -> Network:
    if model.network is None:
        raise UsageError("the model has no description, so its file could not say what it holds",
                         fix="make it with X3D.of(network) or X3D.preset(name), or set model.network")
    return model.network


def _state_of(model: X3D) -> State:
    return {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}


def _translate(state: State, style: public.Style) -> State:
    return {public.translate(key, public.OURS, style) or key: value for key, value in state.items()}


def _describe(network: Network, state: State) -> dict[str, Any]:
    return replace(network, first_projection_bn=public.has_first_norm(state)).as_dict()


def _save(path: Path, content: dict[str, Any]) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as file:  # by its name, torch refuses one without suffix
        torch.save(content, file)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def _some(keys: list[str]) -> str:
    rest = len(keys) - SHOWN
    return ", ".join(key[:200] for key in keys[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
