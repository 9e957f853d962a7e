"""Which network is handed over, in which format, to which file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from expand.api import export
from expand.errors import RunError, UsageError
from expand.exports import FORMATS
from expand.model import X3D
from expand.model.load import load_model
from expand.training.checkpoint import save_weights
from tests.exports.networks import NETWORK, clips, logits, trained, write_final


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_final(tmp_path_factory.mktemp("trained"))


@pytest.mark.parametrize("format", [name for name, format in FORMATS.items() if not format.is_graph])
def test_weights_that_were_handed_over_come_back_as_the_same_network(run, tmp_path, format):
    files = export(run, format, tmp_path)
    assert files[0] == tmp_path / f"mine{FORMATS[format].suffix}" and set(files) == set(tmp_path.iterdir())
    x_BCTHW = clips(2)
    assert torch.allclose(logits(load_model(files[0]), x_BCTHW), logits(trained(), x_BCTHW), atol=1e-5)


def test_a_run_keeps_what_it_hands_over_unless_told_otherwise(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert export(run, "safetensors") == [run / "final" / "mine.safetensors"]
    assert export(run / "final" / "weights.pt", "safetensors") == [Path("mine.safetensors")]
    assert export("xs", "safetensors", "as.safetensors", weights=_published(tmp_path)) == [Path("as.safetensors")]
    assert load_model("as.safetensors").network.name == "xs"


def _published(folder: Path) -> Path:
    save_weights(folder / "xs.pt", X3D.preset("xs", 3))
    return folder / "xs.pt"


def test_a_description_alone_has_nothing_to_hand_over(run):
    for source in ("xs", "XL", str(run / "final" / "network.yaml")):
        with pytest.raises(UsageError, match="is a network without weights") as caught:
            export(source, "onnx")
        assert "--weights" in str(caught.value)
    with pytest.raises(UsageError, match="has weights already"):
        export(trained(), "onnx", weights="more.pt")


def test_a_mistyped_format_is_answered_with_the_one_that_was_meant():
    for wrong, hint in (("onx", "did you mean 'onnx'?"), ("tflite", "known: slowfast, pytorchvideo")):
        with pytest.raises(UsageError) as caught:
            export("no such run", wrong)
        assert f"there is no format '{wrong}'" in str(caught.value) and hint in str(caught.value)


def test_a_file_name_that_its_format_would_not_be_known_by_is_refused(tmp_path):
    with pytest.raises(UsageError, match="ends with .pt2") as caught:
        export(trained(), "torch-export", tmp_path / "net.onnx")
    assert f"write to {tmp_path}/net.pt2" in str(caught.value) and not list(tmp_path.iterdir())


def test_a_model_without_a_description_is_refused():
    with pytest.raises(UsageError, match="no description"):
        export(X3D(NETWORK.geometry), "torch-export", Path("net.pt2"))


@pytest.mark.parametrize(("name", "file"), [("../up/and out", "up-and-out"), ("..", "network"), ("é\n*", "network"),
                                            ("a.b", "a.b")])
def test_a_networks_name_leads_nowhere_but_into_the_folder(tmp_path, name, file):
    model = trained()
    model.network = replace(NETWORK, name=name)
    assert export(model, "safetensors", tmp_path) == [tmp_path / f"{file}.safetensors"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(RunError, match="cannot be written") as caught:
        export(trained(), "safetensors", tmp_path / "out" / "net.safetensors")
    assert str(tmp_path / "out") in str(caught.value)
