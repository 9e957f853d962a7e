"""Checkpoints as others wrap them, and files that are none: read without running anything in them, or named."""

import argparse
import codecs
import collections
import datetime
import functools
import gzip
import io
import json
import os
import pathlib
import pickle
import tarfile
import types
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.optim.swa_utils import AveragedModel

from expand import logs
from expand.errors import UsageError
from expand.model import X3D
from expand.model.load import load_checkpoint, load_model
from expand.model.public import MMACTION, OURS, PYTORCHVIDEO, SLOWFAST, translate
from expand.model.weights import read_checkpoint
from expand.space.factors import Factors
from expand.space.network import Network
from tests.model.seeded import seeded_clip, seeded_model

NETWORK = Network("small", Factors.of(frames=2, stride=3, resolution=32, depth=0.4), 3, ("walk", "run", "jump"))
CLIP = seeded_clip(2, 32)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model():
    return seeded_model(X3D.of(NETWORK)).eval()


def state_of(model, style=OURS, prefix=""):
    return {prefix + translate(key, OURS, style): value for key, value in model.state_dict().items()}


def other_state(model, style=OURS, prefix=""):
    """The same names with other values."""
    return {key: value + 1 for key, value in state_of(model, style, prefix).items()}


def save(content, path):
    torch.save(content, path)
    return path


def same(path, model, says=0):
    lines: list[str] = []
    with logs.shown_by(lines.append):
        back = load_model(path, NETWORK)
    assert len(lines) == says, lines
    return torch.equal(back(CLIP), model(CLIP))


def refused(path, *words, of=load_model):
    with pytest.raises(UsageError) as error:
        of(path)
    text = str(error.value)
    assert str(path) in text and error.value.fix and all(word in text for word in words), text


# Wrappers.

@pytest.mark.parametrize("wrap", [
    *(lambda state, key=key: {key: state, "epoch": 3} for key in (
        "state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "module", "ema",
        "state_dict_ema", "model_ema", "averaged_model", "params", "my_x3d")),
    lambda state: {"state_dict": {"model": state}}, lambda state: {"checkpoint": {"ema": {"module": state}}},
    lambda state: (state, {"epoch": 3}), lambda state: [{"lr": 0.1}, state],
    lambda state: {**state, "epoch": 3, "arch": "x3d"},
    lambda state: {"model": state, "optimizer": {"state": {0: {"momentum_buffer": state["stem.bn.weight"]}}}},
    lambda state: {"optimizer": {"momentum": state}, "model": state}])
def test_weights_are_found_in_what_others_put_around_them(model, tmp_path, wrap):
    assert same(save(wrap(state_of(model)), tmp_path / "x3d.pt"), model)


@pytest.mark.parametrize("style", [OURS, SLOWFAST, PYTORCHVIDEO], ids=lambda style: style.name)
@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "_forward_module.", "module.model.", "net.",
                                    "_orig_mod.module.", "module._orig_mod.", "backbone.", "encoder.backbone.",
                                    "_fsdp_wrapped_module.", "module.module.", "x3d.base_model.model."])
def test_a_prefix_before_every_name_is_left_off(model, tmp_path, style, prefix):
    state = state_of(model, style, prefix) | {"n_averaged": torch.tensor(3)}
    if not prefix.startswith("_"):  # else the network is the whole file, and nothing stands beside it
        state["criterion.weight"] = torch.ones(3)
    path = save({"state_dict": state}, tmp_path / "x3d.pt")
    assert read_checkpoint(path).style == style.name
    assert same(path, model)


def test_shells_in_the_middle_of_names_are_left_off(model, tmp_path):
    state = {key.replace("stages.", "_fsdp_wrapped_module.stages.").replace(".a.", "._checkpoint_wrapped_module.a."):
             value for key, value in state_of(model).items()}
    assert same(save(state, tmp_path / "x3d.pt"), model)


def test_lightning_s_checkpoint_is_read_with_its_settings_left_alone(model, tmp_path):
    content = {"epoch": 9, "global_step": 90, "pytorch-lightning_version": "2.1.0", "loops": {"fit_loop": {}},
               "state_dict": state_of(model, PYTORCHVIDEO, "model.") | {"train_acc.total": torch.tensor(5)},
               "hyper_parameters": argparse.Namespace(lr=0.1, root=pathlib.Path("data")),
               "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5)}},
               "optimizer_states": [{"state": {0: {"momentum_buffer": torch.ones(3)}}}], "lr_schedulers": []}
    assert same(save(content, tmp_path / "last.ckpt"), model)


def test_mmaction2_s_names_are_read(model, tmp_path):
    state = state_of(model, MMACTION)
    state["cls_head.fc1.weight"] = state["cls_head.fc1.weight"].flatten(1)
    path = save({"meta": {"epoch": 3, "cfg": "model = dict()"}, "state_dict": state}, tmp_path / "mm.pth")
    assert {"backbone.conv1_s.conv.weight", "backbone.layer1.0.conv1.bn.weight",
            "backbone.layer2.0.downsample.conv.weight", "backbone.layer1.0.se_module.fc1.bias"} < state.keys()
    assert read_checkpoint(path).style == "mmaction2"
    assert same(path, model)
    resnet = {key: value for key, value in state.items() if key.startswith("backbone.layer")}
    refused(save({"state_dict": resnet}, tmp_path / "resnet.pth"), "holds no X3D", "backbone.layer1.0")


def test_an_averaged_model_is_read(model, tmp_path):
    average = AveragedModel(model)
    assert same(save({"model_state": average.state_dict()}, tmp_path / "x3d.pt"), model)


@pytest.mark.parametrize("key", ["ema", "model_ema", "state_dict_ema", "ema_state_dict", "averaged_model", "swa_model"])
def test_of_several_sets_the_averaged_one_is_taken_and_that_is_said(model, tmp_path, key, lines):
    path = save({"model": other_state(model), key: state_of(model, prefix="module.")}, tmp_path / "x3d.pt")
    assert same(path, model, says=1)
    lines.clear()
    load_model(path, NETWORK)
    assert key in lines[0] and "not model" in lines[0]


def test_averages_without_norms_are_not_taken(model, tmp_path):
    part = {key: value for key, value in other_state(model).items() if "running" not in key}
    assert same(save({"model": state_of(model), "ema": part}, tmp_path / "x3d.pt"), model)


def test_mmengine_s_swapped_averages_are_known(model, tmp_path):
    path = save({"meta": {"mmengine_version": "0.10"}, "state_dict": state_of(model),
                 "ema_state_dict": other_state(model, prefix="module.")}, tmp_path / "mm.pth")
    assert same(path, model, says=1)


def test_averages_beside_the_network_in_one_dictionary_are_taken(model, tmp_path):
    state = other_state(model, prefix="model.") | state_of(model, prefix="ema_model.module.")
    assert same(save({"state_dict": state}, tmp_path / "x3d.pt"), model, says=1)


def test_safetensors_with_a_prefix_are_read(model, tmp_path):
    save_file({key: value.clone() for key, value in state_of(model, PYTORCHVIDEO, "model.").items()},
              tmp_path / "model.safetensors")
    assert same(tmp_path / "model.safetensors", model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions_are_read(model, tmp_path, dtype):
    state = {key: value.to(dtype) for key, value in state_of(model).items() if "tracked" not in key}
    back = load_model(save({"state_dict": state}, tmp_path / "x3d.pt"), NETWORK)
    torch.testing.assert_close(back.stem.bn.weight, model.stem.bn.weight, rtol=0.01, atol=0.01)


def test_a_knot_of_dictionaries_ends(model, tmp_path):
    content = {"state_dict": state_of(model), "self": {}, 10**50: {"a": torch.ones(1)}}
    content["self"]["self"] = content["self"]
    assert same(save(content, tmp_path / "x3d.pt"), model)


# Objects beside the weights.

@pytest.mark.parametrize("beside", [
    argparse.Namespace(lr=0.1), pathlib.PurePosixPath("a/b"), np.float64(0.5), np.arange(3),
    datetime.datetime(2024, 1, 2), collections.defaultdict(list, {"a": [1]}), collections.deque([1, 2]),
    types.SimpleNamespace(a=1), range(3),
    {"best": np.float32(1.0), "dtype": np.dtype("float32")}], ids=lambda value: type(value).__name__)
def test_usual_objects_beside_the_weights_are_passed_over(model, tmp_path, beside):
    assert same(save({"state_dict": state_of(model), "args": beside}, tmp_path / "x3d.pt"), model)


@pytest.mark.parametrize("text", [b"comegaconf.dictconfig\nDictConfig\n", b"cyacs.config\nCfgNode\n",
                                  b"clightning_fabric.utilities.data\nAttributeDict\n"])
def test_a_class_of_a_package_that_is_not_here_is_passed_over(model, tmp_path, text):
    """The class is created anew, filled and given a state, as pickles do; nothing of that name is imported."""
    def filled(data):  # the place of a mark, which the object takes
        mark = pickle.dumps("MARK", 2)[2:-1]
        middle = data.index(mark[:-2])
        fill = b"X\x01\x00\x00\x00aK\x01s" if b"Dict\n" in text[-6:] and b"Attr" in text or b"Cfg" in text else b""
        return data[:middle] + text + b")\x81" + fill + b"}b" + data[middle + len(mark) - 2:]

    plain = save({"state_dict": state_of(model), "hparams": "MARK"}, tmp_path / "plain.pt")
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(tmp_path / "x3d.pt", "w") as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, filled(data) if name.endswith("data.pkl") else data)
    assert same(tmp_path / "x3d.pt", model)


def test_schedules_and_optimisers_beside_the_weights_are_passed_over(model, tmp_path):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    steps = torch.optim.lr_scheduler.MultiStepLR(optimizer, [30, 40])
    beside = {"lr_schedulers": [steps.state_dict(), torch.optim.lr_scheduler.MultiStepLR(optimizer, [5]).state_dict()],
              "schedule": torch.optim.lr_scheduler.StepLR(optimizer, 3), "optimizer": torch.optim.SGD([torch.ones(1)]),
              "hyper_parameters": {"optimizer": functools.partial(torch.optim.AdamW, lr=0.1)}}
    content = {"state_dict": state_of(model), **beside}
    torch.save(content, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    assert same(tmp_path / "legacy.pt", model)
    assert same(save({**content, "criterion": torch.nn.CrossEntropyLoss()}, tmp_path / "x3d.pt"), model)


@pytest.mark.parametrize("again", [b"h\x02", b"ccollections\nCounter\n", b"ccollections\nCounter\nq\x02"])
def test_counters_may_not_copy_what_the_file_holds(model, tmp_path, again):
    large = b"}q\x01(" + b"".join(b"M" + number.to_bytes(2, "little") + b"K\x01" for number in range(1000)) + b"u"
    calls = b"ccollections\nCounter\nq\x02}\x85R" + (again + b"h\x01\x85R") * 1000
    plain = save({"state_dict": state_of(model), "hparams": "MARK"}, tmp_path / "plain.pt")
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(tmp_path / "x3d.pt", "w") as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, b"\x80\x02](" + large + calls + b"e." if name.endswith("data.pkl") else data)
    refused(tmp_path / "x3d.pt", "collections.Counter")


class Code:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_code_beside_the_weights_is_named_and_never_run(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, beside in enumerate((Code(), print, eval, torch.nn.Linear(1, 1))):
        path = save({"state_dict": state_of(model), "args": beside}, tmp_path / f"{number}.pt")
        refused(path, "could run code", "torch.save(model.state_dict(), file)")
    refused(save(model.stem, tmp_path / "module.pt"), "could run code")
    refused(save(torch.nn.Linear(1, 1), tmp_path / "linear.pt"), "a whole pickled network", "torch.nn.modules.linear")
    assert not (tmp_path / "ran").exists()


def test_numbers_of_numpy_s_may_not_make_much_of_a_few_bytes(model, tmp_path):
    class Long:
        def __reduce__(self):
            return codecs.encode, ("x" * 100_000, "latin1")

    path = save({"state_dict": state_of(model), "best": [Long() for _ in range(700)]}, tmp_path / "x3d.pt")
    refused(path, "_codecs.encode")


def test_another_pickle_protocol_is_explained(model, tmp_path):
    torch.save({"state_dict": state_of(model)}, tmp_path / "x3d.pt", pickle_protocol=4)
    with pytest.warns(UserWarning, match="protocol 4"):
        refused(tmp_path / "x3d.pt", "pickle_protocol")


# No classifier.

@pytest.mark.parametrize("style", [OURS, SLOWFAST, PYTORCHVIDEO, MMACTION], ids=lambda style: style.name)
@pytest.mark.parametrize("renamed", [None, "fc", "HEAD.1"])
def test_without_a_known_classifier_a_training_begins_a_new_one_and_says_so(model, tmp_path, style, renamed, lines):
    head = translate("head.classifier.weight", OURS, style).removesuffix(".weight")
    state = state_of(model, style)
    for entry in ("weight", "bias"):
        value = state.pop(f"{head}.{entry}")
        if renamed:
            state[f"{renamed.replace('HEAD', head)}.{entry}"] = value
    path = save({"state_dict": {f"net.{key}": value for key, value in state.items()}}, tmp_path / "x3d.pt")
    ours = X3D.of(NETWORK)
    first = ours.head.classifier.weight.clone()
    load_checkpoint(ours, path)
    assert torch.equal(ours.head.classifier.weight, first)
    assert torch.equal(ours.head.features.weight, model.head.features.weight)
    assert len(lines) == 1 and "the classifier keeps its initial weights" in lines[0]
    assert not renamed or f"{renamed.replace('HEAD', head)}.weight" in lines[0]
    refused(path, "holds no classifier", "--init", *([f"{renamed.replace('HEAD', head)}.bias"] if renamed else []))


def test_a_trunk_alone_begins_the_last_layers_anew(model, tmp_path, lines):
    state = {key: value for key, value in state_of(model, SLOWFAST).items() if not key.startswith("head.")}
    ours = X3D.of(NETWORK)
    load_checkpoint(ours, save(state, tmp_path / "x3d.pt"))
    assert torch.equal(ours.stages[3][0].a.weight, model.stages[3][0].a.weight)
    assert len(lines) == 1 and "the last layers keep their initial weights" in lines[0]


@pytest.mark.parametrize("change", [lambda state: state.pop("stem.temporal.weight"),
                                    lambda state: state.pop("head.inner.weight"),
                                    lambda state: state.update({"stages.0.0.d.weight": torch.ones(2)})])
def test_a_missing_classifier_excuses_nothing_else(model, tmp_path, change):
    state = {key: value for key, value in state_of(model).items() if "classifier" not in key}
    change(state)
    with pytest.raises(UsageError, match="do not fit the network"):
        load_checkpoint(X3D.of(NETWORK), save(state, tmp_path / "x3d.pt"))


def test_a_linear_layer_for_a_convolution_computes_the_same(model, tmp_path):
    state = state_of(model)
    state["head.features.weight"] = state["head.features.weight"].flatten(1)
    state["head.classifier.weight"] = state["head.classifier.weight"][:, :, None, None, None]
    assert same(save(state, tmp_path / "x3d.pt"), model)


# Files of other kinds.

def tar():
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return held.getvalue()


def zipped(*names):
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return held.getvalue()


def numpy_file(save_with, *arguments):
    held = io.BytesIO()
    save_with(held, *arguments)
    return held.getvalue()


@pytest.mark.parametrize(("data", "words"), [
    (b"", ["is empty", "damaged"]), (bytes(3000), ["zeros", "damaged"]),
    (b"<!DOCTYPE html><html>", ["web page"]), (b"\n<html><head>", ["web page"]), (b"<?xml version='1.0'?>", ["XML"]),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", ["Git LFS", "git lfs pull"]),
    (json.dumps({"message": "Not Found"}).encode(), ["JSON"]),
    (json.dumps({"metadata": {}, "weight_map": {}}).encode(), ["several files"]),
    (numpy_file(np.save, np.ones(3)), ["NumPy"]), (numpy_file(np.savez, np.ones(3)), ["NumPy", ".npz"]),
    (b"\x89HDF\r\n\x1a\n" + bytes(9), ["HDF5"]), (b"\x1c\x00\x00\x00TFL3", ["TensorFlow Lite"]),
    (b"\x08\x07\x12\x07pytorch", ["ONNX"]), (gzip.compress(b"x", mtime=0), ["gzip", "unpack"]),
    (tar(), ["tar archive", "unpack"]), (zipped("x3d.pth"), ["zip archive", "unpack"]),
    (zipped("m/code/a.py", "m/data.pkl"), ["TorchScript", "state_dict()"]),
    (zipped("m/archive_format", "m/data/weights/w"), [".pt2"]), (b"\x00\x00\x00\x20ftypisom", ["video"])])
def test_files_of_other_kinds_are_called_by_their_name(tmp_path, data, words):
    (tmp_path / "x3d.pth").write_bytes(data)
    refused(tmp_path / "x3d.pth", *words)


@pytest.mark.filterwarnings("ignore")
def test_torchscript_says_how_to_save_its_weights(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.BatchNorm3d(3)), tmp_path / "x3d.pt")
    refused(tmp_path / "x3d.pt", "TorchScript", "torch.jit.load(FILE, map_location='cpu').state_dict()")


def test_a_download_that_stopped_is_called_so(model, tmp_path):
    path = save({"state_dict": state_of(model)}, tmp_path / "x3d.pt")
    path.write_bytes(path.read_bytes()[:-4000])
    refused(path, "damaged", "its end is missing", "download")


def test_a_description_beside_the_weights_is_found_where_both_are_wrapped(model, tmp_path):
    described = replace(NETWORK, name="mine")
    path = save({"result": {"model": state_of(model), "network": described.as_dict()}}, tmp_path / "x3d.pt")
    assert load_model(path).network == described
