"""The closed form is exact: against the published figures, and against networks that are really built."""

import pytest
import torch
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from expand.model import X3D
from expand.space.complexity import complexity, complexity_of
from expand.space.factors import PRESETS, Factors
from expand.space.geometry import Geometry

PUBLISHED = {  # FACTS: the published family, 400 classes
    "x2d": (20_662_304, 1_633_560), "xs": (605_256_512, 3_794_322), "s": (1_962_892_112, 3_794_322),
    "m": (4_732_468_736, 3_794_322), "l": (18_367_710_176, 6_153_432), "xl": (35_837_627_616, 11_095_904)}


@pytest.mark.parametrize("name", PRESETS)
def test_published_networks_cost_what_is_published(name):
    cost = complexity_of(PRESETS[name], 400)
    assert (cost.madds, cost.params) == PUBLISHED[name]


def test_fvcore_convention_gives_the_known_figure_for_xs():
    assert round(complexity_of(PRESETS["xs"], 400).gflops_fvcore, 3) == 0.626


def test_pytorchvideo_graph_of_xl_has_its_parameters():
    geometry = Geometry.of(PRESETS["xl"], 400, first_projection_bn=False)
    assert complexity(geometry).params == 11_095_840


def build(geometry):
    with torch.device("meta"):
        return X3D(geometry).eval()


def clip(geometry):
    return torch.empty(1, 3, geometry.frames, geometry.resolution, geometry.resolution, device="meta")


def counted_by_torch(geometry, model):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(clip(geometry))
    return counter.get_total_flops() // 2  # torch counts a multiply-add as two


@st.composite
def geometries(draw):
    factors = Factors.of(
        frames=draw(st.integers(1, 20)), stride=1, resolution=draw(st.integers(32, 330)),
        width=draw(st.integers(1, 60)) / 20, bottleneck=draw(st.integers(1, 16)) / 4,
        depth=draw(st.integers(1, 10)) / 10)
    return Geometry.of(factors, draw(st.integers(1, 1000)), first_projection_bn=draw(st.booleans()))


@settings(max_examples=200, deadline=None)
@given(geometries())
def test_closed_form_equals_the_built_network_to_the_last_multiply_add_and_parameter(geometry):
    cost, model = complexity(geometry), build(geometry)
    assert cost.madds == counted_by_torch(geometry, model)
    assert cost.params == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", PRESETS)
def test_presets_built_equal_the_closed_form(name):
    geometry = Geometry.of(PRESETS[name], 400)
    assert counted_by_torch(geometry, build(geometry)) == PUBLISHED[name][0]


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=6, deadline=None)
@given(st.integers(1, 5), st.integers(32, 70), st.sampled_from([0.5, 1.0, 1.45]), st.sampled_from([1.0, 2.25]),
       st.sampled_from([0.5, 1.0, 2.2]))
def test_fvcore_counts_the_same(frames, resolution, width, bottleneck, depth):
    geometry = Geometry.of(Factors.of(frames=frames, stride=1, resolution=resolution, width=width,
                                      bottleneck=bottleneck, depth=depth), 7)
    model, x = X3D(geometry).eval(), torch.zeros(1, 3, frames, resolution, resolution)
    flops = FlopCountAnalysis(model, x).unsupported_ops_warnings(False)
    activations = ActivationCountAnalysis(model, x).unsupported_ops_warnings(False)
    cost = complexity(geometry)
    assert flops.total() == cost.madds_fvcore
    assert flops.by_operator()["conv"] + flops.by_operator()["linear"] == cost.madds
    assert activations.total() == cost.activations
