"""ONNX and torch.export files of one small network, exported once."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch

from expand.api import export
from expand.errors import ExpandError, UsageError
from expand.exports import writers
from expand.model import X3D
from expand.model.load import load_model
from expand.model.untrusted_files import read_torch_export
from expand.space.network import Network
from tests.exports.networks import NETWORK, clips, logits, trained

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model() -> X3D:
    """For the logits to compare with."""
    return trained()


@pytest.fixture(scope="module")
def exported() -> X3D:
    """The model that is exported, as its owner left it."""
    return trained()


@pytest.fixture(scope="module")
def onnx_file(exported, tmp_path_factory) -> Path:
    pytest.importorskip("onnxscript")
    return export(exported, "onnx", tmp_path_factory.mktemp("onnx"))[0]


@pytest.fixture(scope="module")
def program_file(exported, tmp_path_factory) -> Path:
    return export(exported, "torch-export", tmp_path_factory.mktemp("program") / "net.pt2")[0]


def agree(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return (found - expected).abs().max() <= 1e-4 * min(1.0, expected.abs().max())


def repacked(source: Path, target: Path, changes: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """The archive with the content of some records changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, changes.get(name.split("/", 1)[1], old.read(name)))
    return target


def test_the_model_stays_as_it_was(exported, onnx_file, program_file):
    assert exported.training and all(weight.requires_grad for weight in exported.parameters())
    assert all(torch.equal(exported.state_dict()[key], value) for key, value in trained().state_dict().items())


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_onnx_runtime_computes_the_models_logits_for_any_batch(model, onnx_file, batch):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["clips"]
    assert session.get_inputs()[0].shape == ["batch", 3, 2, 36, 36]
    found = session.run(["logits"], {"clips": clips(batch).numpy()})[0]
    assert found.shape == (batch, 5) and agree(torch.from_numpy(found), logits(model, clips(batch)))


def test_the_onnx_graph_is_convolutions_with_their_norms_folded_in(onnx_file):
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(onnx_file).graph
    counts = Counter(node.op_type for node in graph.node)
    convolutions = sum(isinstance(module, torch.nn.Conv3d) for module in trained().modules())
    assert counts["Conv"] == convolutions
    assert counts["MatMul"] + counts["Gemm"] == 1  # the classifier
    assert not {"BatchNormalization", "Dropout", "If", "Loop"} & set(counts)


def test_the_onnx_metadata_says_what_a_clip_must_look_like_and_names_the_classes(onnx_file):
    onnx = pytest.importorskip("onnx")
    found = {entry.key: entry.value for entry in onnx.load(onnx_file).metadata_props}
    assert Network.from_dict(json.loads(found.pop("network")), where="metadata") == NETWORK
    assert json.loads(found.pop("class_names")) == ["a", "b", "ć", "d", "e"]
    assert found == {"mean": "0.4", "std": "0.2", "frames": "2", "temporal_stride": "3", "reference_fps": "30",
                     "evaluation_crop": "36", "training_crop": "32"}


def test_no_file_names_a_folder_of_the_machine_that_wrote_it(onnx_file, program_file):
    for file in (onnx_file, program_file):
        assert str(ROOT).encode() not in file.read_bytes() and sys.prefix.encode() not in file.read_bytes()


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_loaded_program_computes_the_models_logits_for_any_batch(model, program_file, batch):
    found = torch.export.load(program_file).module()(clips(batch))
    assert found.shape == (batch, 5) and agree(found, logits(model, clips(batch)))


def test_a_program_gives_back_the_network_and_every_weight_without_running_anything(program_file, monkeypatch):
    monkeypatch.setattr(torch.export, "load", None)
    monkeypatch.setattr(torch, "load", None)
    network, state = read_torch_export(program_file)
    expected = trained().state_dict()
    assert network == NETWORK and state.keys() == expected.keys()
    assert all(torch.equal(state[key], value) and state[key].dtype == value.dtype for key, value in expected.items())


def test_a_program_loads_as_a_model(model, program_file):
    loaded = load_model(program_file)
    assert loaded.network == NETWORK and torch.equal(logits(loaded, clips(2)), logits(model, clips(2)))


def weight(**changes: object) -> dict[str, bytes]:
    meta = {"dtype": 7, "sizes": [{"as_int": 4}], "strides": [{"as_int": 1}], "storage_offset": {"as_int": 0}}
    entry = {"path_name": "weight_0", "use_pickle": False, "tensor_meta": meta}
    for key, value in changes.items():
        (meta if key in meta else entry)[key] = value
    return {"data/weights/model_weights_config.json": json.dumps({"config": {"stem.spatial.weight": entry}}).encode()}


@pytest.mark.parametrize(("changes", "words"), [
    (weight(use_pickle=True), "pickled"),
    (weight(path_name="../../sample_inputs/model.pt"), "KeyError"),
    (weight(storage_offset={"as_int": 10**6}), "out of bounds"),
    (weight(storage_offset={"as_int": -1}), "RuntimeError"),
    (weight(sizes=[{"as_int": 10**10}], strides=[{"as_int": 0}]), "claims more weights than it holds"),
    (weight(dtype=99), "KeyError"),
    ({"extra/network.json": b"[" * 100_000}, "nested too deeply"),
    ({"extra/network.json": b" " * 1_000_001}, "larger than 1000000 bytes"),
    ({"extra/network.json": b"{}"}, "no mapping 'factors'"),
])
def test_a_hostile_program_file_is_refused_with_the_reason(program_file, tmp_path, changes, words):
    file = repacked(program_file, tmp_path / "bad.pt2", changes)
    with pytest.raises(UsageError, match=words) as caught:
        read_torch_export(file)
    assert str(file) in str(caught.value)


def test_a_program_file_that_grows_when_read_or_is_none_is_refused(program_file, tmp_path):
    bomb = repacked(program_file, tmp_path / "bomb.pt2", {"data/weights/weight_0": bytes(10**8)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(UsageError, match="grows when it is read"):
        read_torch_export(bomb)
    (tmp_path / "no.pt2").write_bytes(b"no zip")
    with pytest.raises(UsageError, match="is no network that x3d-expand exported"):
        read_torch_export(tmp_path / "no.pt2")
    with pytest.raises(UsageError, match="cannot be read"):
        read_torch_export(tmp_path / "missing.pt2")
    foreign = io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.zeros(1),)), foreign)
    (tmp_path / "foreign.pt2").write_bytes(foreign.getvalue())
    with pytest.raises(UsageError, match="is no network that x3d-expand exported"):
        read_torch_export(tmp_path / "foreign.pt2")


def test_a_graph_that_computes_something_else_is_never_written(model):
    with pytest.raises(ExpandError, match="differ from the model's by 0.0") as caught:
        writers._largest_difference(writers._copy_to_cpu(model), lambda x_BCTHW: logits(model, x_BCTHW) + 0.01)
    assert "nothing was written" in str(caught.value)


def test_a_missing_onnx_package_is_named_with_the_extra_that_brings_it(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UsageError) as caught:
        export(model, "onnx", tmp_path)
    assert "'onnxscript'" in str(caught.value) and "pip install 'x3d-expand[onnx]'" in str(caught.value)
    assert not list(tmp_path.iterdir())
