"""The network computes what the public implementations compute.

With the plain operators every bit is theirs. The fast ones round otherwise, and all but the rounding is theirs: a mean
for the average pool and matrix products for 1x1x1 convolutions add in another order, and the fused Swish rounds once
less than x * sigmoid(x).
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from expand.exports.writers import save_pytorchvideo
from expand.model import X3D
from expand.model.convolution import plain_operators
from expand.model.load import load_checkpoint, load_model
from expand.model.public import OURS, SLOWFAST, translate
from expand.space.factors import PRESETS, Factors
from expand.space.network import Network
from tests.model.seeded import seeded_clip, seeded_state

GOLDEN = json.loads((Path(__file__).parent / "golden" / "slowfast.json").read_text())
CLASSES = 7
CLIPS = {"xs": (4, 160), "s": (13, 64), "m": (16, 64), "l": (4, 64), "xl": (4, 64)}
"""Frames and side of the training crop: XS's as published, the rest smaller, to take a second."""
CASES = [(name, side) for name, (_, side) in CLIPS.items()] + [("xs", 182), ("s", 96), ("xl", 96)]
"""And sides of the clip that is fed; the larger ones give the head several positions."""

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def network_of(name):
    """A published network at the clip of this test."""
    frames, side = CLIPS[name]
    clip = Factors.of(frames=frames, stride=1, resolution=side)
    return Network(name, replace(PRESETS[name], gamma_t=clip.gamma_t, gamma_s=clip.gamma_s), CLASSES,
                   first_projection_bn=False)


def pytorchvideo(network, **head):
    """PyTorchVideo's own network, with initial weights."""
    x3d = pytest.importorskip("pytorchvideo.models.x3d", reason="compares with PyTorchVideo: pip install pytorchvideo")
    factors = network.factors
    return x3d.create_x3d(
        input_clip_length=factors.frames, input_crop_size=factors.resolution, model_num_class=network.classes,
        width_factor=2 * factors.gamma_w, depth_factor=factors.gamma_d, bottleneck_factor=factors.gamma_b,
        **head).eval()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Ours and theirs of a network, with the same weights, through a checkpoint; each made once."""
    made = {}

    def pair(name):
        if name not in made:
            network = network_of(name)
            theirs = pytorchvideo(network, head_activation=None)
            theirs.load_state_dict(seeded_state(theirs.state_dict()))
            path = tmp_path_factory.mktemp("theirs") / "x3d.pyth"
            torch.save({"model_state": theirs.state_dict()}, path)
            made[name] = load_model(path, network), theirs
        return made[name]

    return pair


def assert_close(ours, theirs, tolerance):
    """Within `tolerance` of the largest value."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * theirs.abs().max().item())


@pytest.mark.parametrize(("name", "side"), CASES)
def test_logits_are_pytorchvideo_s_to_the_last_bit(pairs, name, side):
    ours, theirs = pairs(name)
    clip = seeded_clip(CLIPS[name][0], side)
    with plain_operators():
        logits = ours(clip)
    assert torch.equal(logits, theirs(clip))
    assert logits.std() > 0.01


@pytest.mark.parametrize(("name", "side"), CASES)
def test_logits_of_the_fast_operators_are_pytorchvideo_s_but_for_rounding(pairs, name, side):
    ours, theirs = pairs(name)
    clip = seeded_clip(CLIPS[name][0], side)
    assert_close(ours(clip), theirs(clip), 1e-5)


@pytest.mark.parametrize("side", [160, 182])
def test_probabilities_are_those_of_pytorchvideo_s_default_head(pairs, side):
    ours, theirs = pairs("xs")
    whole = pytorchvideo(network_of("xs"))
    whole.load_state_dict(theirs.state_dict())
    clip = seeded_clip(4, side)
    assert_close(ours.probabilities(clip), whole(clip), 1e-5)


def test_a_pytorchvideo_network_goes_in_and_out_unchanged(pairs, tmp_path):
    ours, theirs = pairs("xs")
    save_pytorchvideo(ours, tmp_path / "back.pyth")
    again = pytorchvideo(network_of("xs"), head_activation=None)
    again.load_state_dict(torch.load(tmp_path / "back.pyth", weights_only=True)["model_state"])
    clip = seeded_clip(4, 160)
    assert torch.equal(again(clip), theirs(clip))


def test_a_network_with_slowfast_s_batch_norm_goes_out_to_pytorchvideo(tmp_path):
    network = replace(network_of("s"), first_projection_bn=True)
    ours = X3D.of(network).eval()
    ours.load_state_dict(seeded_state(ours.state_dict()))
    save_pytorchvideo(ours, tmp_path / "x3d.pyth")
    theirs = pytorchvideo(network, head_activation=None)
    theirs.load_state_dict(torch.load(tmp_path / "x3d.pyth", weights_only=True)["model_state"])
    clip = seeded_clip(*CLIPS["s"])
    assert_close(theirs(clip), ours(clip), 2e-6)


@pytest.fixture(scope="module")
def golden_model(tmp_path_factory):
    """The network of the golden values, loaded from a file in SlowFast's names."""
    network = Network.from_dict(GOLDEN["network"], where="golden")
    model = X3D.of(network)
    theirs = {translate(key, OURS, SLOWFAST): value for key, value in model.state_dict().items()}
    path = tmp_path_factory.mktemp("golden") / "x3d.pyth"
    torch.save({"model_state": seeded_state(theirs)}, path)
    load_checkpoint(model, path)
    return model.eval()


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"{case['side']}px")
def test_logits_and_probabilities_are_those_that_slowfast_s_own_code_computed(golden_model, case):
    clip = seeded_clip(golden_model.geometry.frames, case["side"])
    assert_close(golden_model(clip)[0], torch.tensor(case["logits"]), 1e-5)
    assert_close(golden_model.probabilities(clip)[0], torch.tensor(case["probabilities"]), 1e-5)
