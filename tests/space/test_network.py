"""Networks by name and by file."""

import pytest

from expand.errors import UsageError
from expand.space.factors import PRESETS
from expand.space.network import dump_network, find_network, load_network


@pytest.mark.parametrize("name", PRESETS)
def test_a_written_network_reads_back_exactly(tmp_path, name):
    path = tmp_path / "network.yaml"
    path.write_text(dump_network(PRESETS[name], 7, name="mine"))
    network = load_network(path)
    assert (network.name, network.factors, network.classes) == ("mine", PRESETS[name], 7)


def test_an_unknown_name_gets_a_suggestion():
    with pytest.raises(UsageError, match="did you mean 'x2d'"):
        find_network("x2dd")


@pytest.mark.parametrize(("text", "words"), [
    ("factors: [", "is not YAML"),
    ("a: 1", "no mapping 'factors'"),
    ("classes: 0\nfactors: {gamma_tau: 1}", "'classes' is not a positive whole number"),
    ("classes: 4\nfactors: {gamma_tua: 1}", "did you mean 'gamma_tau'"),
    ("classes: 4\nfactors: {gamma_t: 1.5}", "'factors.gamma_t' is not a whole number"),
    ("classes: 4\nfactors: {gamma_w: 1.0e+9}", "outside"),
    ("classes: 4\nfactors: {gamma_s: .nan}", "outside"),
    ("!!python/object/apply:os.system ['true']", "is not YAML"),
])
def test_a_wrong_file_is_explained(tmp_path, text, words):
    path = tmp_path / "network.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        load_network(path)
    assert words in str(error.value) and str(path) in str(error.value)
