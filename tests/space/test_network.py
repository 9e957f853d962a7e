"""Networks by name and by file."""

import pytest

from expand.errors import UsageError
from expand.space.factors import PRESETS, Factors
from expand.space.geometry import Geometry
from expand.space.network import Network, dump_network, find_network, is_within_bounds, load_network


@pytest.mark.parametrize("name", PRESETS)
def test_a_written_network_reads_back_exactly(tmp_path, name):
    path = tmp_path / "network.yaml"
    network = Network("mine", PRESETS[name], 3, ("walk", "run, fast", "Sprünge"), 0.4, 0.3, first_projection_bn=False)
    path.write_text(dump_network(network))
    assert load_network(path) == network


def test_a_network_needs_no_more_than_factors_and_classes(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"classes: 7\nfactors: {PRESETS['s'].as_dict()}")
    assert load_network(path) == Network("mine", PRESETS["s"], 7)


def test_the_number_of_classes_is_that_of_their_names_or_the_callers_where_a_file_does_not_say(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"factors: {PRESETS['s'].as_dict()}\n")
    assert load_network(path, 5).classes == 5
    with pytest.raises(UsageError, match="'classes', their number, is missing"):
        load_network(path)
    path.write_text(f"factors: {PRESETS['s'].as_dict()}\nclass_names: [a, b, c]\n")
    assert load_network(path).classes == load_network(path, 5).classes == 3
    path.write_text(f"classes: 7\nfactors: {PRESETS['s'].as_dict()}\n")
    assert load_network(path, 5).classes == 7


def test_an_unknown_name_gets_a_suggestion():
    with pytest.raises(UsageError, match="did you mean 'x2d'"):
        find_network("x2dd")


@pytest.mark.parametrize(("text", "words"), [
    ("factors: [", "not valid YAML"),
    ("a: 1", "no mapping 'factors'"),
    ("classes: 0\nfactors: {gamma_tau: 1}", "'classes' is not a positive whole number"),
    ("classes: 4\nfactors: {gamma_tua: 1}", "did you mean 'gamma_tau'"),
    ("classes: 4\nfactors: {gamma_t: 1.5}", "'factors.gamma_t' is not a whole number"),
    ("classes: 4\nfactors: {gamma_w: 1.0e+9}", "outside"),
    ("classes: 4\nfactors: {gamma_s: .nan}", "outside"),
    ("classes: 1\nfactors: {gamma_t: 1}\nmean: 2", "'mean' is not a number from 0 to 1"),
    ("classes: 1\nfactors: {gamma_t: 1}\nstd: 0", "'std' is not a number"),
    ("classes: 1\nfactors: {gamma_t: 1}\nfirst_projection_bn: 1", "neither true nor false"),
    ("classes: 2\nfactors: {gamma_t: 1}\nclass_names: [a]", "as many texts as there are 'classes'"),
    ("!!python/object/apply:os.system ['true']", "are not understood"),
])
def test_a_wrong_file_is_explained(tmp_path, text, words):
    path = tmp_path / "network.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        load_network(path)
    assert words in str(error.value) and str(path) in str(error.value)


def test_the_thinnest_network_that_can_be_built_can_be_described_and_the_next_thinner_cannot():
    """One filter in a bottleneck of 8 channels; rounded widths count, not γw times the base."""
    thin = Factors.of(frames=1, stride=8, resolution=32, width=0.05, bottleneck=0.125)
    assert Geometry.of(thin, 2).head_inner == 2 and is_within_bounds(thin)
    assert not is_within_bounds(Factors.of(frames=1, stride=8, resolution=32, width=0.05, bottleneck=0.06))
