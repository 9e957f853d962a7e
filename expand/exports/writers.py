"""The writers of the formats: checkpoints of other programs, safetensors, and graphs that compute without this package
(docs/decisions/006-handing-over.md)."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
import yaml
from torch import Tensor

from expand.errors import ExpandError, UsageError
from expand.model import X3D, public
from expand.model.convolution import plain_operators
from expand.model.public import State
from expand.rundir.files import atomic_path, to_json, write_atomic
from expand.space.factors import REFERENCE_FPS
from expand.space.geometry import evaluation_crop
from expand.space.network import Network
from expand.version import __version__

OPSET = 18
"""The version that the exporter writes without a conversion; runtimes since 2023 read it."""
TRACED_BATCH = 2
"""Exporters take a batch of one for a constant."""
TOLERANCE = 1e-4
"""Largest difference of a logit that is put down to rounding, as a share of the largest logit."""


def save_slowfast(model: X3D, path: str | Path) -> list[Path]:
    """Write a checkpoint that SlowFast loads, and its configuration beside it (.yaml); return both paths.

    If SlowFast's own X3D rounds to other widths, both are for its PTVX3D (`expand.model.public`). Raises `UsageError`
    if neither builds this network, and for a model without a description.
    """
    path, network = Path(path), model.description
    beside = path.with_suffix(".yaml")
    if beside == path:
        raise UsageError("is the name of the configuration beside the checkpoint", where=str(path),
                         fix=f"name the checkpoint {path.with_suffix('.pyth')}")
    config = yaml.safe_dump(public.slowfast_config(network, dropout=model.head.dropout.p, checkpoint=path.name),
                            sort_keys=False)
    if public.slowfast_builder(network) == public.NATIVE:
        state, style, prefix = public.slowfast_shortcuts(_state_of(model)), public.SLOWFAST, ""
    else:
        state, style, prefix = public.pytorchvideo_shortcuts(_state_of(model)), public.PYTORCHVIDEO, "model."
    # No "epoch": SlowFast would then look for the optimiser's state too when it fine-tunes.
    _save_checkpoint(path, network, state, style, prefix, cfg=config)
    write_atomic(beside, f"# SlowFast's configuration of {path.name}\n{config}")
    return [path, beside]


def save_pytorchvideo(model: X3D, path: str | Path) -> list[Path]:
    """Write a checkpoint whose `model_state` loads strictly into PyTorchVideo's `create_x3d` with width_factor
    2 gamma_w, bottleneck_factor gamma_b, depth_factor gamma_d; return its path.

    Raises `UsageError` if `create_x3d` builds other shapes, and for a model without a description.
    """
    path, network = Path(path), model.description
    if not public.builds(network, 8):
        raise public.not_buildable(network, "PyTorchVideo")
    _save_checkpoint(path, network, public.pytorchvideo_shortcuts(_state_of(model)), public.PYTORCHVIDEO)
    return [path]


def save_safetensors(model: X3D, path: str | Path) -> list[Path]:
    """Write the weights as safetensors, with the network's description as JSON under "network" in the metadata;
    return its path. Raises `UsageError` for a model without a description."""
    path, network = Path(path), model.description
    metadata = {"format": "pt", "network": to_json(network.as_dict())}
    write_atomic(path, safetensors.torch.save(_state_of(model), metadata))
    return [path]


def _state_of(model: X3D) -> State:
    return {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}


def _save_checkpoint(path: Path, network: Network, state: State, style: public.Style, prefix: str = "",
                     **others: str) -> None:
    """Write `state`, which has our names, with those of `style` after `prefix`, and its description beside it."""
    weights = {prefix + (public.translate(key, public.OURS, style) or key): value for key, value in state.items()}
    described = replace(network, first_projection_bn=public.has_first_norm(state)).as_dict()
    with atomic_path(path) as temporary, open(temporary, "wb") as file:  # by its name, torch refuses one without suffix
        torch.save({"model_state": weights, **others, "network": described}, file)


# --- graphs ---


def save_onnx(model: X3D, path: Path) -> float | None:
    """Write ONNX: input `clips`, output `logits`, metadata as in `metadata`. Return the largest difference from the
    model's logits, None without ONNX Runtime.

    Raises `UsageError` if a package is missing, `ExpandError` if the graph computes something else.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  torch.onnx needs it
    except ImportError as error:
        raise UsageError(f"ONNX needs the package '{error.name}', which is not installed",
                         fix="pip install 'x3d-expand[onnx]'") from error
    model = _copy_to_cpu(model)
    with _exporter_context():
        program = torch.onnx.export(model, (_clips(model.description, TRACED_BATCH),), dynamo=True, opset_version=OPSET,
                                    verbose=False, input_names=["clips"], output_names=["logits"],
                                    dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert program is not None  # it is, with dynamo
    proto = program.model_proto
    graph = proto.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]  # what only a debugger of the exporter needs; it names folders of this machine
    proto.producer_name, proto.producer_version = "x3d-expand", __version__
    onnx.helper.set_model_props(proto, metadata(model.description))
    onnx.checker.check_model(proto, full_check=True)
    content = proto.SerializeToString()
    difference = None
    if importlib.util.find_spec("onnxruntime"):
        import onnxruntime

        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        difference = _largest_difference(model, lambda x_BCTHW: torch.from_numpy(
            session.run(["logits"], {"clips": x_BCTHW.numpy()})[0]))
    write_atomic(path, content)
    return difference


def save_torch_export(model: X3D, path: Path) -> float:
    """Write PyTorch's exported program, with the network's description as `network.json` among the extra files; the
    weights keep their names (`read_torch_export` reads both). Return the largest difference from the model's
    logits. Raises `ExpandError` if the program computes something else.
    """
    model = _copy_to_cpu(model)
    with _exporter_context():
        program = torch.export.export(model, (_clips(model.description, TRACED_BATCH),), strict=False,
                                      dynamic_shapes=({0: torch.export.Dim("batch")},))
        program.example_inputs = None  # a clip of zeros would be stored, larger than most networks
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # names folders of this machine
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files={"network.json": to_json(model.description.as_dict())})
        difference = _largest_difference(model, torch.export.load(buffer).module())
    write_atomic(path, buffer.getvalue())
    return difference


def metadata(network: Network) -> dict[str, str]:
    """Return the metadata of an ONNX file: all that a program must know about clips and classes."""
    factors = network.factors
    return {"network": to_json(network.as_dict()), "class_names": to_json(network.class_names),
            "mean": str(network.mean), "std": str(network.std), "frames": str(factors.frames),
            "temporal_stride": str(factors.stride), "reference_fps": str(REFERENCE_FPS),
            "evaluation_crop": str(evaluation_crop(factors.resolution)), "training_crop": str(factors.resolution)}


def _copy_to_cpu(model: X3D) -> X3D:
    """Return a copy in evaluation on the CPU; the caller's model stays as it is."""
    return copy.deepcopy(model).to("cpu", torch.float32).to(memory_format=torch.contiguous_format).eval()


def _clips(network: Network, batch: int) -> Tensor:
    """Return clips of noise, the same every time."""
    crop = evaluation_crop(network.factors.resolution)
    return torch.randn(batch, 3, network.factors.frames, crop, crop, generator=torch.Generator().manual_seed(0))


@contextlib.contextmanager
def _exporter_context() -> Iterator[None]:
    """Use the operators that exporters know, and keep their own messages from the screen."""
    with plain_operators(), torch.no_grad(), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _largest_difference(model: X3D, graph: Callable[[Tensor], Tensor]) -> float:
    """Return the largest difference between the logits of `graph` and `model`, over a batch as traced and one that is
    not. Raises `ExpandError` if it is more than rounding."""
    largest = 0.0
    for batch in (1, TRACED_BATCH):
        x_BCTHW = _clips(model.description, batch)
        with torch.no_grad():
            expected, found = model(x_BCTHW), graph(x_BCTHW)
        difference = (found - expected).abs().max().item()
        if found.shape != expected.shape or not difference <= TOLERANCE * expected.abs().max().item():
            raise ExpandError(f"the exported network's logits differ from the model's by {difference:.3g}",
                              fix="nothing was written; please report this, with the versions of torch and onnxscript")
        largest = max(largest, difference)
    return largest
