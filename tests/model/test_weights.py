"""Weights in and out: every kind of file, what does not fit, and what an untrusted file may try."""

import json
import os
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

import expand
from expand import logs
from expand.errors import RunError, UsageError
from expand.exports.writers import save_pytorchvideo, save_safetensors, save_slowfast
from expand.model import X3D
from expand.model.load import load_checkpoint, load_model
from expand.model.public import OURS, PYTORCHVIDEO, SLOWFAST, translate
from expand.model.weights import read_checkpoint
from expand.space.factors import PRESETS, Factors
from expand.space.geometry import Geometry
from expand.space.network import Network, dump_network
from expand.training import checkpoint as training
from expand.training.checkpoint import save_weights
from tests.model.seeded import seeded_clip, seeded_model

NETWORK = Network("small", Factors.of(frames=2, stride=3, resolution=32, depth=0.4), 3, ("walk", "run", "Sprünge"), 0.4,
                  0.3)
WIDER = replace(NETWORK, name="wider", factors=replace(NETWORK.factors, gamma_w=0.35))
CLIP = seeded_clip(2, 40)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model():
    return seeded_model(X3D.of(NETWORK))


def renamed(model, style):
    """The state dict under another implementation's names."""
    return {translate(key, OURS, style): value for key, value in model.state_dict().items()}


def save(content, path):
    torch.save(content, path)
    return path


def quiet(path, *arguments):
    """`load_model`, which has nothing to take for granted."""
    lines: list[str] = []
    with logs.shown_by(lines.append):
        model = load_model(path, *arguments)
    assert lines == []
    return model


def loading_says(path, *words, of=load_model, kind=UsageError, network=None):
    with pytest.raises(kind) as error:
        of(path, *([network] if network else []))
    assert all(word in str(error.value) for word in (*words, str(path))), str(error.value)


# Files that say what they are.

def test_weights_of_this_package_come_back_as_they_were(model, tmp_path):
    save_weights(tmp_path / "x3d.pt", model)
    back = quiet((tmp_path / "x3d.pt").rename(tmp_path / "mine"))  # no suffix is needed
    assert back.network == NETWORK and not back.training
    assert torch.equal(back(CLIP), model(CLIP))


def test_a_training_s_checkpoint_can_be_read(model, tmp_path):
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    training.save(tmp_path / "checkpoint.pt", "any", model, optimizer, training.Progress())
    assert torch.equal(load_model(tmp_path / "checkpoint.pt", NETWORK)(CLIP), model(CLIP))


@pytest.mark.parametrize("write", [save_safetensors, save_slowfast])
def test_a_written_file_says_everything_about_its_network(model, tmp_path, write):
    files = write(model, tmp_path / "new" / "winner.any")
    assert all(file.is_file() for file in files) and len(list((tmp_path / "new").iterdir())) == len(files)
    back = quiet(files[0])
    assert back.network == NETWORK
    assert torch.equal(back(CLIP), model(CLIP))


def test_a_file_for_pytorchvideo_has_its_graph_and_says_the_rest(model, tmp_path):
    [file] = save_pytorchvideo(model, tmp_path / "x3d.pyth")
    checkpoint = read_checkpoint(file)
    assert checkpoint.style == "pytorchvideo"
    back = quiet(file)
    assert back.network == replace(NETWORK, first_projection_bn=False)
    torch.testing.assert_close(back(CLIP), model(CLIP), rtol=1e-6, atol=1e-6)


def test_slowfast_s_own_configuration_says_which_network_it_is(model, tmp_path):
    file, beside = save_slowfast(model, tmp_path / "x3d.pyth")
    content = torch.load(file, weights_only=True)
    del content["network"]
    assert content["cfg"] in beside.read_text()
    back = quiet(save(content, file))
    assert back.network == replace(NETWORK, name="x3d", class_names=None)


def test_slowfast_s_configuration_has_the_published_values(tmp_path):
    _, beside = save_slowfast(X3D.preset("xs", 5), tmp_path / "xs.pyth")
    config = yaml.safe_load(beside.read_text())
    published = {"X3D": {"WIDTH_FACTOR": 2.0, "DEPTH_FACTOR": 2.2, "BOTTLENECK_FACTOR": 2.25, "DIM_C5": 2048,
                         "DIM_C1": 12},
                 "DATA": {"NUM_FRAMES": 4, "SAMPLING_RATE": 12, "TRAIN_CROP_SIZE": 160, "TEST_CROP_SIZE": 182,
                          "INPUT_CHANNEL_NUM": [3], "TRAIN_JITTER_SCALES": [182, 228]},
                 "RESNET": {"ZERO_INIT_FINAL_BN": True, "TRANS_FUNC": "x3d_transform", "STRIDE_1X1": False},
                 "MODEL": {"NUM_CLASSES": 5, "ARCH": "x3d", "MODEL_NAME": "X3D", "DROPOUT_RATE": 0.5}}
    for section, values in published.items():
        assert {key: config[section][key] for key in values} == values


def test_widths_that_slowfast_s_own_x3d_has_not_go_to_its_pytorchvideo_builder(tmp_path):
    wider = seeded_model(X3D.of(WIDER))
    file, beside = save_slowfast(wider, tmp_path / "x3d.pyth")
    assert yaml.safe_load(beside.read_text())["MODEL"]["MODEL_NAME"] == "PTVX3D"
    keys = torch.load(file, weights_only=True)["model_state"]
    assert all(key.startswith("model.blocks.") for key in keys)
    assert "model.blocks.1.res_blocks.0.branch1_norm.bias" not in keys
    torch.testing.assert_close(load_model(file)(CLIP), wider(CLIP), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("write", [save_slowfast, save_pytorchvideo])
def test_factors_that_the_public_code_rounds_otherwise_are_not_written(tmp_path, write):
    odd = replace(NETWORK, factors=replace(NETWORK.factors, gamma_d=1 / 3 + 1e-7, gamma_b=0.9999999))
    with pytest.raises(UsageError, match="rounds differently.*\n.*grids"):
        write(X3D.of(odd), tmp_path / "x3d.pyth")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", [save_slowfast, save_pytorchvideo, save_safetensors])
def test_a_model_without_a_description_is_not_written(tmp_path, write):
    with pytest.raises(UsageError, match=r"no description(.|\n)*X3D\.of"):
        write(X3D(NETWORK.geometry), tmp_path / "x3d.pyth")


def test_a_slowfast_checkpoint_is_not_written_over_its_own_configuration(model, tmp_path):
    with pytest.raises(UsageError, match=r"x3d\.pyth"):
        save_slowfast(model, tmp_path / "x3d.yaml")


# Files that say nothing.

@pytest.mark.parametrize(("style", "prefix"), [(SLOWFAST, ""), (SLOWFAST, "module."), (PYTORCHVIDEO, "module.model."),
                                               (OURS, "")])
def test_a_bare_state_dict_is_known_by_its_names(model, tmp_path, style, prefix):
    path = save({prefix + key: value for key, value in renamed(model, style).items()}, tmp_path / "weights")
    assert read_checkpoint(path).style == style.name
    assert torch.equal(load_model(path, NETWORK)(CLIP), model(CLIP))


def test_half_precision_and_missing_counters_are_no_obstacle(model, tmp_path):
    state = {key: value.half() for key, value in model.state_dict().items() if not key.endswith("tracked")}
    back = load_model(save(state, tmp_path / "half.pt"), NETWORK)
    torch.testing.assert_close(back(CLIP), model(CLIP), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("name", PRESETS)
def test_a_published_network_is_known_by_its_shapes(tmp_path, name, lines):
    path = save(X3D.preset(name, 3).state_dict(), tmp_path / "x3d.pt")
    shared = name in ("xs", "s", "m")
    network = load_model(path).network
    assert network.factors == PRESETS["xs" if shared else name] and network.classes == 3
    assert len(lines) == 1
    if shared:
        assert all(word in lines[0] for word in ("4 frames x stride 12, 160 px", "X3D-XS", "s and m", "network=..."))
        with pytest.warns(UserWarning, match="network=... chooses") as warned:
            expand.load(path)
        assert [Path(warning.filename) for warning in warned] == [Path(__file__)]
        assert quiet(path, name).network.factors == PRESETS[name]


@pytest.mark.parametrize(("width", "bottleneck", "depth"), [(0.35, 1.75, 1.3), (1.45, 2.0, 0.1), (0.1, 0.25, 4.4)])
def test_other_factors_are_found_on_the_grids(tmp_path, width, bottleneck, depth, lines):
    factors = Factors.of(frames=2, stride=1, resolution=32, width=width, bottleneck=bottleneck, depth=depth)
    geometry = Geometry.of(factors, 3, first_projection_bn=False)
    path = save(X3D(geometry).state_dict(), tmp_path / "x3d.pt")
    lines.clear()
    found = load_model(path)
    assert "not a published one" in lines[0]
    assert (found.geometry.stages, found.geometry.stem) == (geometry.stages, geometry.stem)
    assert load_model(path, network := Network("n", factors, 3)).network == replace(network, first_projection_bn=False)


def test_shapes_off_the_grids_need_a_network(tmp_path):
    network = replace(NETWORK, factors=replace(NETWORK.factors, gamma_b=1.05, gamma_w=1.0))
    path = save(X3D.of(network).state_dict(), tmp_path / "x3d.pt")
    loading_says(path, "no factors on the grids", "network=...")
    (tmp_path / "n.yaml").write_text(dump_network(network))
    assert load_model(path, tmp_path / "n.yaml").network == network


# What the caller says.

def test_a_published_name_changes_the_clip_and_keeps_what_the_file_knows(tmp_path):
    network = Network("mine", PRESETS["xs"], 2, ("a", "b"), 0.4, 0.3)
    [path] = save_safetensors(X3D.of(network), tmp_path / "x3d.safetensors")
    assert load_model(path, "S").network == replace(network, name="s", factors=PRESETS["s"])


def test_another_network_is_refused_before_it_is_built(model, tmp_path):
    save_weights(tmp_path / "x3d.pt", model)
    loading_says(tmp_path / "x3d.pt", "not network 'xs'", "1/1/2/2 blocks", "3/5/11/7 blocks", network="xs")
    loading_says(tmp_path / "x3d.pt", "has 3 classes, and network 'small' has 4",
                 network=replace(NETWORK, classes=4, class_names=None))
    with pytest.raises(UsageError, match="did you mean 'xs'"):
        load_model(tmp_path / "x3d.pt", "xss")


# Directories and names.

def test_a_finished_run_is_loaded_from_its_directory_or_its_final_folder(model, tmp_path):
    (tmp_path / "run").mkdir()
    save_weights(tmp_path / "run" / "final" / "weights.pt", X3D.of(replace(NETWORK, name="other")))
    save_weights(tmp_path / "run" / "final" / "weights.pt", model)
    (tmp_path / "run" / "final" / "network.yaml").write_text(dump_network(NETWORK))
    for source in (tmp_path / "run", tmp_path / "run" / "final", str(tmp_path / "run" / "final" / "weights.pt")):
        back = quiet(source)
        assert back.network == NETWORK and torch.equal(back(CLIP), model(CLIP))


def test_what_holds_no_weights_says_what_to_give(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    loading_says(run, "no trained weights", kind=RunError)
    (run / "journal.jsonl").touch()
    loading_says(run, "no trained winner yet", f"x3d-expand resume {run}", kind=RunError)
    loading_says(tmp_path / "gone.pt", "no such file")
    loading_says("m", "without weights", "X3D.preset('m')")
    loading_says("n" * 5000, "no such file")
    loading_says(tmp_path / "x3d.onnx", "onnxruntime")
    loading_says(tmp_path / "gone.pt", "No such file", of=read_checkpoint)
    loading_says(run, "is a folder", of=read_checkpoint)


# Loading into a network.

@pytest.mark.parametrize("has_norm", [True, False])
def test_a_batch_norm_that_only_one_has_is_folded_or_added_exactly(tmp_path, has_norm):
    theirs = seeded_model(X3D.of(replace(NETWORK, first_projection_bn=has_norm)))
    ours = X3D.of(replace(NETWORK, first_projection_bn=not has_norm)).eval()
    save_weights(tmp_path / "x3d.pt", theirs)
    load_checkpoint(ours, tmp_path / "x3d.pt")
    expected = theirs(CLIP)
    torch.testing.assert_close(ours(CLIP), expected, rtol=0, atol=1e-6 * expected.abs().max().item())


def test_a_classifier_of_other_classes_keeps_its_first_weights_and_says_so(model, tmp_path, lines):
    save_weights(tmp_path / "x3d.pt", model)
    ours = X3D.of(replace(NETWORK, name="mine", classes=5, class_names=None))
    first = ours.head.classifier.weight.clone()
    load_checkpoint(ours, tmp_path / "x3d.pt")
    assert torch.equal(ours.head.classifier.weight, first)
    assert torch.equal(ours.head.features.weight, model.head.features.weight)
    assert len(lines) == 1 and "small with 3 classes" in lines[0] and "mine with 5 classes here" in lines[0]


@pytest.mark.parametrize(("there", "here", "taken"), [
    (("a", "b", "c"), ("c", "a", "b"), [2, 0, 1]), (("a", "b", "c"), ("a", "b", "d"), None),
    (None, ("a", "b", "c"), [0, 1, 2]), (("a", "b", "c"), None, [0, 1, 2])])
def test_classes_are_matched_by_name_where_both_sides_know_them(tmp_path, there, here, taken, lines):
    theirs = seeded_model(X3D.of(replace(NETWORK, classes=3, class_names=there)))
    save_weights(tmp_path / "theirs.pt", theirs)
    ours = X3D.of(replace(NETWORK, classes=3, class_names=here))
    first = ours.head.classifier.weight.clone()
    load_checkpoint(ours, tmp_path / "theirs.pt")
    assert torch.equal(ours.head.classifier.weight, first if taken is None else theirs.head.classifier.weight[taken])
    assert torch.equal(ours.head.features.weight, theirs.head.features.weight)
    assert ["(a, b, c, ...) there" in line for line in lines] == [True] * (taken is None)


def test_all_that_does_not_fit_is_listed_and_the_model_is_left_alone(model, tmp_path):
    state = dict(model.state_dict())
    for index in range(12):
        state[f"extra.{index}.weight"] = torch.zeros(1)
    del state["stem.temporal.weight"]
    state["stem.bn.weight"] = torch.zeros(5)
    ours = X3D.of(NETWORK)
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    with pytest.raises(UsageError) as error:
        load_checkpoint(ours, save(state, tmp_path / "x3d.pt"))
    text = str(error.value)
    assert "1 missing: stem.temporal.weight" in text and "1 of another shape: stem.bn.weight (5, not 24)" in text
    assert "12 unexpected: extra.0.weight" in text and "extra.9.weight and 2 more" in text and "extra.10" not in text
    assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(model, tmp_path, value):
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state["stages.1.0.c.weight"][0, 0] = value
    path = save(state, tmp_path / "x3d.pt")
    loading_says(path, "1 of its weights are not finite: stages.1.0.c.weight", network=NETWORK)


# Untrusted files.

class Code:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("old_format", [False, True])
def test_code_in_a_file_is_never_run(tmp_path, monkeypatch, old_format):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Code()}, "bad.pt", _use_new_zipfile_serialization=not old_format)
    loading_says("bad.pt", "could run code", "torch.save(model.state_dict(), file)")
    torch.save(torch.nn.Linear(1, 1), "module.pt", _use_new_zipfile_serialization=not old_format)
    loading_says("module.pt", "could run code")
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(Code(), protocol=2))
    loading_says("bad.pkl", "could run code")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
@pytest.mark.parametrize("write", [save_safetensors, save_pytorchvideo])
def test_a_truncated_file_is_called_damaged(model, tmp_path, write, share):
    [path] = write(model, tmp_path / "x3d")
    data = path.read_bytes()
    path.write_bytes(data[:int(share * len(data))])
    loading_says(path, "damaged")


@pytest.mark.parametrize(("content", "words"), [
    ([1, 2], "holds a list"), (torch.zeros(3), "holds a Tensor"), ({}, "nothing at all"),
    ({"model": {"layer1.0.conv.weight": torch.zeros(1)}}, "layer1.0.conv.weight"),
    ({"epoch": 3, "lr": 0.1}, "2 of its entries are not weights: epoch, lr"),
    ({"stem.bn.weight": torch.ones(24).to_sparse()}, "not weights: stem.bn.weight"),
    ({"stem.bn.weight": torch.zeros(24, dtype=torch.complex64)}, "not weights: stem.bn.weight"),
    ({"stem.bn.weight": torch.zeros(24, device="meta")}, "not weights: stem.bn.weight"),
    ({"stem.bn.weight": torch.zeros(1).expand(10**12)}, "claims more weights than it holds"),
    ({"s1.pathway0_stem.bn.bias": torch.zeros(1), "s1.pathway0_stem.bn.weight": torch.zeros(1),
      "stem.bn.weight": torch.zeros(1)}, "names one weight twice"),
    ({"stem.bn.weight": torch.zeros(24)}, "no whole X3D"),
    ({"stages.0.0.c.weight": torch.tensor(1.0), "stages.0.0.b.weight": torch.tensor(1.0)}, "no whole X3D"),
])
@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_a_file_that_is_no_x3d_says_what_it_holds(tmp_path, content, words):
    loading_says(save(content, tmp_path / "file"), words)


def test_a_file_that_grows_when_read_is_refused(model, tmp_path):
    [path] = save_pytorchvideo(X3D.of(NETWORK), tmp_path / "x3d.pyth")
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in archive.namelist():
            bomb.writestr(name, bytes(len(archive.read(name))) if "/data/" in name else archive.read(name))
    loading_says(tmp_path / "bomb", "grows when it is read")


@pytest.mark.parametrize(("factors", "words"), [
    ({"gamma_w": 10.0}, "not network 'small'"), ({"gamma_d": 100.0}, "not network 'small'"),
    ({"gamma_w": 100.0}, "2.3e+09 weights, more than"), ({"gamma_d": 1000.0}, "outside"),
    ({"gamma_w": 1e9}, "outside"), ({"gamma_w": "wide"}, "is not a number")])
def test_absurd_factors_are_refused_before_memory_is_taken(model, tmp_path, factors, words):
    content = NETWORK.as_dict()
    content["factors"].update(factors)
    path = save({"model": model.state_dict(), "network": content}, tmp_path / "x3d.pt")
    loading_says(path, words)
    assert load_model(path, NETWORK).network == NETWORK  # the caller knows better


def test_a_few_wide_entries_do_not_make_a_network_of_gigabytes(tmp_path):
    network = Network("wide", replace(NETWORK.factors, gamma_w=8.0, gamma_b=100.0, gamma_d=0.1), 3)
    state = {"head.classifier.weight": torch.zeros(3, 2048)}
    for number, (block, *_) in enumerate(network.geometry.stages):
        state[f"stages.{number}.0.c.weight"] = torch.zeros(block.outer, 1)
        state[f"stages.{number}.0.b.weight"] = torch.zeros(block.inner, 1)
    path = save({"model": state, "network": network.as_dict()}, tmp_path / "x3d.pt")
    loading_says(path, "holds only a part of its network")


def test_loading_leaves_the_random_numbers_alone(model, tmp_path):
    save_weights(tmp_path / "x3d.pt", model)
    before = torch.get_rng_state()
    load_model(tmp_path / "x3d.pt")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("text", "words"), [
    ("DATA: [", "not valid YAML"), ("!!python/object/apply:os.mkdir ['ran']", "are not understood"),
    ("a: 1", "KeyError"),
    (7, "no text"), ("[" * 500, "nested more than 16 levels deep")])
def test_a_broken_slowfast_configuration_is_explained(model, tmp_path, text, words):
    path = save({"model_state": renamed(model, SLOWFAST), "cfg": text}, tmp_path / "x3d.pyth")
    loading_says(path, words, "network='xs'")
    load_checkpoint(X3D.of(NETWORK), path)  # which needs no description


def test_channels_that_are_normalised_differently_are_not_taken_for_one(model, tmp_path):
    file, _ = save_slowfast(model, tmp_path / "x3d.pyth")
    content = torch.load(file, weights_only=True)
    del content["network"]
    config = yaml.safe_load(content["cfg"])
    config["DATA"]["MEAN"] = [0.4, 0.5, 0.6]
    loading_says(save({**content, "cfg": yaml.safe_dump(config)}, file), "DATA.MEAN differs between the channels")


def test_a_description_in_safetensors_is_checked_like_any_other(model, tmp_path):
    for text, words in (("{", "damaged"), (json.dumps({"classes": 0}), "no mapping 'factors'"),
                        ("x" * 2_000_000, "description of more than")):
        save_file(dict(model.state_dict()), tmp_path / "x3d.safetensors", metadata={"network": text})
        loading_says(tmp_path / "x3d.safetensors", words)


@pytest.mark.parametrize("answer", ["404: Not Found", "403 Forbidden", "Entry not found", "Not Found"])
def test_text_that_a_server_answered_is_named_as_text(tmp_path: Path, answer: str) -> None:
    path = tmp_path / "x3d_s.pyth"
    path.write_text(answer)
    with pytest.raises(UsageError, match="is text in place of a checkpoint: a server's answer"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "global_step8/mp_rank_00_model_states.pt"])
def test_a_folder_given_as_a_checkpoint_names_the_file_inside(tmp_path: Path, name: str) -> None:
    inside = tmp_path / name
    inside.parent.mkdir(exist_ok=True)
    inside.touch()
    with pytest.raises(UsageError, match="is a folder") as caught:
        read_checkpoint(tmp_path)
    assert str(inside) in str(caught.value.fix)
