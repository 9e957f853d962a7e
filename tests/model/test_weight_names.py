"""Weight names: ours, SlowFast's and PyTorchVideo's are one set of names written in three ways."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expand.model import X3D
from expand.model.public import OURS, PYTORCHVIDEO, SLOWFAST, STYLES, translate
from expand.model.weights import find_groups
from expand.space.factors import Factors
from expand.space.geometry import Geometry
from expand.space.network import Network, preset

GOLDEN = json.loads((Path(__file__).parent / "golden" / "slowfast.json").read_text())
FACTORS = st.builds(Factors, st.just(1), st.just(1), st.just(1.0), st.floats(0.1, 3), st.floats(0.3, 4),
                    st.floats(0.1, 2.5))
PUBLIC = st.sampled_from([SLOWFAST, PYTORCHVIDEO])


def keys_of(geometry):
    with torch.device("meta"):
        return X3D(geometry).state_dict()


@settings(max_examples=15)
@given(FACTORS, st.booleans(), PUBLIC)
def test_every_geometry_is_named_one_to_one_and_back(factors, first_projection_bn, style):
    state = keys_of(Geometry.of(factors, 3, first_projection_bn=first_projection_bn))
    keys = list(state)
    theirs = [translate(key, OURS, style) for key in keys]
    assert len(set(theirs)) == len(keys)
    assert [translate(key, style, OURS) for key in theirs] == keys
    [group], [ours] = find_groups(dict(zip(theirs, state.values()))), find_groups(dict(state))
    assert group.style is style and ours.style is OURS


@given(st.sampled_from(list(STYLES.values())), st.sampled_from(list(STYLES.values())), st.text(max_size=60))
def test_a_foreign_name_has_no_translation(source, target, key):
    assert translate(key, source, target) is None


@pytest.mark.parametrize("key", ["stages.00.0.a.weight", "stages.0.0.a", "stages.0.a.weight", "stages.0.0.d.weight",
                                 "stages.0.0.a.weight.weight", "s1.pathway0_res0.branch2.a.weight",
                                 "module.stem.bn.bias",
                                 "stages." + "9" * 5000 + ".0.a.weight", "stages.٣.0.a.weight", "stem.bn.bias\n"])
def test_a_name_that_only_looks_like_one_has_no_translation(key):
    assert all(translate(key, source, OURS) is None for source in STYLES.values())


def test_slowfast_s_own_names_and_shapes_are_those_of_its_checkpoint():
    network = Network.from_dict(GOLDEN["network"], where="golden")
    theirs = sorted((translate(key, OURS, SLOWFAST), list(value.shape))
                    for key, value in keys_of(network.geometry).items())
    text = "\n".join(f"{key} {shape}" for key, shape in theirs)
    assert hashlib.sha256(text.encode()).hexdigest() == GOLDEN["keys_sha256"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["x2d", "xs"])
def test_pytorchvideo_s_own_names_and_shapes_are_those_of_its_networks(name):
    x3d = pytest.importorskip("pytorchvideo.models.x3d", reason="compares with PyTorchVideo: pip install pytorchvideo")
    network = preset(name, 5)
    factors = network.factors
    with torch.device("meta"):
        theirs = x3d.create_x3d(
            input_clip_length=factors.frames, input_crop_size=factors.resolution, model_num_class=5,
            width_factor=2 * factors.gamma_w, depth_factor=factors.gamma_d, bottleneck_factor=factors.gamma_b)
    ours = keys_of(Geometry.of(factors, 5, first_projection_bn=False))
    assert {translate(key, OURS, PYTORCHVIDEO): value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in theirs.state_dict().items()}
