"""A network as a graph that computes without this package: ONNX, and PyTorch's exported program.

The graph takes clips B x 3 x T x H x W at the evaluation crop, for any B, and gives the logits, B x classes. It is
compared with the model before it is written.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from expand.errors import ExpandError, UsageError
from expand.model import X3D
from expand.model.convolution import plain_operators
from expand.rundir.files import to_json, write_atomic
from expand.space.factors import REFERENCE_FPS
from expand.space.geometry import evaluation_crop
from expand.space.network import Network
from expand.version import __version__

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 18
"""What the exporter's operators are written for: any runtime since 2023 opens it, and nothing is converted."""
TRACED_BATCH = 2
"""Exporters take a batch of one for a constant."""
TOLERANCE = 1e-4
"""Largest difference of a logit that is put down to rounding, as a share of the largest logit."""


def save_onnx(model: X3D, path: Path) -> float | None:
    """Writes ONNX: input `clips`, output `logits`, metadata as in `metadata`. Returns the largest difference from the
    model's logits, None without ONNX Runtime.

    Raises `UsageError` where a package is missing, `ExpandError` where the graph computes something else.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  torch.onnx needs it
    except ImportError as error:
        raise UsageError(f"ONNX needs the package '{error.name}', which is not installed",
                         fix="pip install 'x3d-expand[onnx]'") from error
    model = _as_exported(model)
    with plain_operators(), torch.no_grad(), _quiet():
        program = torch.onnx.export(model, _example(model), dynamo=True, opset_version=OPSET, verbose=False,
                                    input_names=["clips"], output_names=["logits"], dynamic_shapes=_any_batch())
    assert program is not None  # it is, with dynamo
    proto = program.model_proto
    _strip_traces(proto)
    proto.producer_name, proto.producer_version = "x3d-expand", __version__
    onnx.helper.set_model_props(proto, metadata(model.description))
    onnx.checker.check_model(proto, full_check=True)
    content = proto.SerializeToString()
    difference = _checked(model, _onnx_session(content)) if importlib.util.find_spec("onnxruntime") else None
    write_atomic(path, content)
    return difference


def save_torch_export(model: X3D, path: Path) -> float:
    """Writes PyTorch's exported program, with the network's description as `network.json` among the extra files; the
    weights keep their names (`expand.model.exported` reads both). Returns the largest difference from the model's
    logits. Raises `ExpandError` where the program computes something else.
    """
    model = _as_exported(model)
    with plain_operators(), torch.no_grad(), _quiet():
        program = torch.export.export(model, _example(model), dynamic_shapes=_any_batch(), strict=False)
        program.example_inputs = None  # a clip of zeros would be stored, larger than most networks
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # names folders of this machine
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files={"network.json": to_json(model.description.as_dict())})
        difference = _checked(model, torch.export.load(buffer).module())
    write_atomic(path, buffer.getvalue())
    return difference


def metadata(network: Network) -> dict[str, str]:
    """What a program needs to know about clips and classes, as ONNX's metadata holds it (docs/decisions/006)."""
    factors = network.factors
    return {"network": to_json(network.as_dict()), "class_names": to_json(network.class_names),
            "mean": str(network.mean), "std": str(network.std), "frames": str(factors.frames),
            "temporal_stride": str(factors.stride), "reference_fps": str(REFERENCE_FPS),
            "evaluation_crop": str(evaluation_crop(factors.resolution)), "training_crop": str(factors.resolution)}


def _as_exported(model: X3D) -> X3D:
    """Return a copy in evaluation on the CPU; the caller's model stays as it is."""
    return copy.deepcopy(model).to("cpu", torch.float32).to(memory_format=torch.contiguous_format).eval()


def _clips(network: Network, batch: int) -> Tensor:
    """The same noise every time."""
    crop = evaluation_crop(network.factors.resolution)
    return torch.randn(batch, 3, network.factors.frames, crop, crop, generator=torch.Generator().manual_seed(0))


def _example(model: X3D) -> tuple[Tensor]:
    return (_clips(model.description, TRACED_BATCH),)


def _any_batch() -> tuple[dict[int, torch.export.Dim]]:
    return ({0: torch.export.Dim("batch")},)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters talk about themselves."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _strip_traces(proto: ModelProto) -> None:
    """Takes out what only a debugger of the exporter wants; it names folders of this machine."""
    graph = proto.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]


def _onnx_session(content: bytes) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda x_BCTHW: torch.from_numpy(session.run(["logits"], {"clips": x_BCTHW.numpy()})[0])


def _checked(model: X3D, graph: Callable[[Tensor], Tensor]) -> float:
    """The largest difference between the logits of `graph` and `model`, over a batch as traced and one that is not."""
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
