"""A checkpoint is continued exactly, or refused with its reason; nothing in it is ever executed."""

import io
import os
import pickle
import subprocess
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expand.config.schema import RecipeConfig
from expand.errors import RunError, UsageError
from expand.model import X3D
from expand.model.archive import IS_SEALED, Damaged, save_sealed
from expand.model.load import load_model
from expand.space.factors import Factors
from expand.space.network import Network
from expand.training import checkpoint
from expand.training.checkpoint import Extent, restore
from expand.training.loop import make_optimizer
from expand.training.progress import Progress

COURSE = Extent(epochs=5, clips=40, batch_size=8)
PROGRESS = Progress(epoch=2, batch=1, loss_sum=0.1 + 0.2, correct=3, seen=8, clips=88, parts=2,
                    rows=[{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}], seconds={"step_s": 1.5})


def trained(steps):
    torch.manual_seed(0)
    model = X3D.of(Network("small", Factors.of(frames=1, stride=1, resolution=32, width=0.1, depth=0.1), 3))
    optimizer = make_optimizer(model, RecipeConfig())
    for _ in range(steps):
        model(torch.randn(2, 3, 1, 32, 32)).square().mean().backward()
        optimizer.step()
    return model, optimizer


@pytest.fixture(scope="module")
def one():
    return trained(2)


@pytest.fixture(scope="module")
def whole(one, tmp_path_factory):
    """The bytes of a checkpoint."""
    path = tmp_path_factory.mktemp("whole") / "checkpoint.pt"
    checkpoint.save(path, "id", *one, PROGRESS)
    return path.read_bytes()


def equal(mine, theirs):
    if isinstance(mine, torch.Tensor):
        return torch.equal(mine, theirs)
    if isinstance(mine, dict):
        return list(mine) == list(theirs) and all(equal(mine[key], theirs[key]) for key in mine)
    return mine == theirs


def test_everything_that_training_depends_on_comes_back(tmp_path):
    model, optimizer = trained(3)
    checkpoint.save(tmp_path / "c.pt", "id", model, optimizer, PROGRESS)
    expected_noise = torch.randn(3)
    other, other_optimizer = trained(0)
    state, complaint = checkpoint.load(tmp_path / "c.pt", "id")
    assert complaint is None
    assert restore(state, other, other_optimizer, COURSE) == PROGRESS
    assert torch.equal(torch.randn(3), expected_noise)
    for mine, theirs in zip(other.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    momenta = [[state["momentum_buffer"] for state in o.state.values()] for o in (optimizer, other_optimizer)]
    assert len(momenta[0]) == len(list(model.parameters()))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*momenta, strict=True))


def test_no_checkpoint_is_no_complaint(tmp_path):
    assert checkpoint.load(tmp_path / "none.pt", "id") == (None, None)


def test_the_checkpoint_of_another_training_is_refused(tmp_path, whole):
    (tmp_path / "c.pt").write_bytes(whole)
    assert checkpoint.load(tmp_path / "c.pt", "two") == (None, "of another training")


def test_torch_and_zip_tools_read_a_sealed_file_as_any_other(tmp_path, whole, one):
    (tmp_path / "c.pt").write_bytes(whole)
    assert equal(dict(torch.load(tmp_path / "c.pt", weights_only=True)["model"]), dict(one[0].state_dict()))
    assert zipfile.ZipFile(tmp_path / "c.pt").testzip() is None
    loaded = load_model(tmp_path / "c.pt")
    assert equal(dict(loaded.state_dict()), dict(one[0].state_dict())) and loaded.network == one[0].network


def test_a_checkpoint_of_before_seals_is_continued_and_its_damage_is_noticed(tmp_path, whole):
    path, state = tmp_path / "c.pt", torch.load(io.BytesIO(whole), weights_only=True)
    del state[IS_SEALED]
    progress = state["progress"]
    del progress["seconds"]
    progress["train_s"], progress["wall_s"] = 3.0, 4.0  # the oldest form of all
    torch.save(state, path)
    found, complaint = checkpoint.load(path, "id")
    assert complaint is None and restore(found, *trained(0), COURSE).seconds == {"step_s": 3.0, "other_s": 1.0}
    content = bytearray(path.read_bytes())
    place = content.index(state["model"]["head.classifier.weight"].numpy().tobytes())
    content[place + 5] ^= 4
    path.write_bytes(content)
    assert "checksum" in checkpoint.load(path, "id")[1]


def test_a_seal_that_was_cut_off_is_missed(tmp_path, whole):
    content = whole[:whole.rindex(b"x3d-expand sha256")]
    (tmp_path / "c.pt").write_bytes(content[:-2] + b"\0\0")
    assert torch.load(tmp_path / "c.pt", weights_only=True)["identity"] == "id"
    assert "its end is missing" in checkpoint.load(tmp_path / "c.pt", "id")[1]
    load_model(tmp_path / "c.pt")  # of weights the checksums count: some may have been changed and saved anew


def flipped(content, place, bit):
    changed = bytearray(content)
    changed[place % len(changed)] ^= 1 << bit
    return bytes(changed)


PLACES = st.integers(0, 2**40)
DAMAGES = st.one_of(
    st.builds(lambda place, bit: lambda c: flipped(c, place, bit), PLACES, st.integers(0, 7)),
    st.builds(lambda back, bit: lambda c: flipped(c, len(c) - 1 - back, bit), st.integers(0, 4000), st.integers(0, 7)),
    st.builds(lambda place: lambda c: c[:place % len(c)], PLACES),
    st.builds(lambda back: lambda c: c[:-back], st.integers(1, 200)),
    st.builds(lambda place, more: lambda c: c[:place % len(c)] + more + c[place % len(c):], PLACES,
              st.binary(min_size=1, max_size=100)),
    st.builds(lambda place, count: lambda c: c[:place % len(c)] + bytes(count) + c[place % len(c) + count:], PLACES,
              st.integers(1, 4096)),
    st.builds(lambda a, b: lambda c: swapped(c, a, b), PLACES, PLACES),
    st.builds(lambda more: lambda c: more, st.binary(max_size=200)))


def swapped(content, first, second, size=512):
    first, second = (place % (len(content) // size) * size for place in (first, second))
    changed = bytearray(content)
    changed[first:first + size], changed[second:second + size] = (
        content[second:second + size], content[first:first + size])
    return bytes(changed)


@settings(max_examples=80)
@given(damage=DAMAGES)
def test_a_damaged_file_gives_the_very_same_state_or_is_refused(whole, tmp_path_factory, damage):
    path = tmp_path_factory.getbasetemp() / "fuzzed.pt"
    path.write_bytes(damage(whole))
    state, complaint = checkpoint.load(path, "id")
    expected = torch.load(io.BytesIO(whole), weights_only=True)
    assert equal(state, expected) if state is not None else "damaged" in complaint
    try:
        assert equal(dict(load_model(path).state_dict()), dict(expected["model"]))
    except UsageError as error:
        assert str(path) in str(error)


def rewritten(content, change):
    """The zip file with other entries: `change` takes name and bytes and gives both, or None."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(target, "w") as other:
        for entry in archive.namelist():
            if (new := change(entry, archive.read(entry))) is not None:
                other.writestr(*new)
    return target.getvalue()


def unsealed(content):
    """The same with valid checksums and no seal: its content is intended."""
    state = torch.load(io.BytesIO(content), weights_only=True)
    del state[IS_SEALED]
    target = io.BytesIO()
    torch.save(state, target)
    return target.getvalue()


@settings(max_examples=40)
@given(place=PLACES, byte=st.integers(0, 255), entry=st.integers(0, 400), other=st.integers(0, 400))
def test_other_entries_with_right_checksums_are_refused_or_change_nothing_but_numbers(
        whole, tmp_path_factory, place, byte, entry, other):
    """Not damage but malice: the pickle with another byte, and two entries in each other's place."""
    path = tmp_path_factory.getbasetemp() / "malice.pt"
    content = unsealed(whole)
    names = zipfile.ZipFile(io.BytesIO(content)).namelist()
    first, second = names[entry % len(names)], names[other % len(names)]
    swap = {first: second, second: first}

    def change(name, data):
        if name.endswith("data.pkl"):
            data = data[:place % len(data)] + bytes([byte]) + data[place % len(data) + 1:]
        return swap.get(name, name), data

    path.write_bytes(rewritten(content, change))
    state, complaint = checkpoint.load(path, "id")
    assert state is not None or complaint
    if state is not None:
        try:
            restore(state, *trained(0), COURSE)
        except Damaged:
            pass
    try:
        load_model(path)
    except UsageError:
        pass


class Bomb:
    def __reduce__(self):
        return (open, ("bomb-went-off", "w"))


class Grown:
    def __reduce__(self):
        return (bytearray, (10**11,))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("hostile", [Bomb, Grown])
def test_a_hostile_file_executes_nothing_and_takes_no_memory(tmp_path, monkeypatch, hostile):
    monkeypatch.chdir(tmp_path)
    torch.save({"version": 1, "identity": "id", "model": hostile()}, tmp_path / "c.pt")
    (tmp_path / "p.pt").write_bytes(pickle.dumps(hostile(), protocol=2))
    torch.save({"model": hostile()}, tmp_path / "l.pt", _use_new_zipfile_serialization=False)
    for name in ("c.pt", "p.pt", "l.pt"):
        assert "damaged" in checkpoint.load(tmp_path / name, "id")[1]
        with pytest.raises(UsageError, match="could run code|damaged"):
            load_model(tmp_path / name)
    assert not (tmp_path / "bomb-went-off").exists()


def test_a_file_that_grows_or_is_too_large_is_not_read(tmp_path, whole):
    path = tmp_path / "c.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("c/data.pkl", bytes(300_000_000))
    assert path.stat().st_size < 1_000_000
    assert "it grows" in checkpoint.load(path, "id")[1]
    with pytest.raises(UsageError, match="grows when it is read"):
        load_model(path)
    with open(path, "wb") as file:
        file.truncate(10**12)  # of holes
    most = checkpoint.max_bytes(trained(0)[0], 5)
    assert len(whole) < most < 10**8
    assert "larger than" in checkpoint.load(path, "id", most)[1]
    path.unlink()
    os.mkfifo(path)
    assert "a pipe" in checkpoint.load(path, "id")[1]
    with pytest.raises(UsageError, match="a pipe"):
        load_model(path)


ABSURD = [
    ("epoch", 10**9), ("epoch", -1), ("epoch", 2.0), ("epoch", "2"), ("epoch", True), ("batch", -1), ("batch", 4),
    ("batch", 10**9), ("loss_sum", float("nan")), ("loss_sum", float("inf")), ("loss_sum", None), ("seen", 0),
    ("correct", 41), ("parts", 0), ("parts", 9), ("clips", -1), ("rows", []), ("rows", None),
    ("rows", [{"epoch": 1.0}] * 10**5), ("rows", [{}, {}]), ("rows", [{"epoch": 1}, {"epoch": 2, "more": 0}]),
    ("rows", [{"epoch": 1, "loss": "low"}] * 2), ("rows", [{"epoch": 1, "loss": torch.zeros(2)}] * 2),
    ("seconds", {"step_s": float("nan")}), ("seconds", {"step_s": -1.0}), ("seconds", {1: 1.0}), ("seconds", None),
    ("unknown", 1)]


@pytest.mark.parametrize(("name", "value"), ABSURD)
def test_absurd_progress_is_refused(whole, name, value):
    state = torch.load(io.BytesIO(whole), weights_only=True)
    state["progress"][name] = value
    refused(state)


def refused(state):
    """`restore` says so and changes nothing."""
    model, optimizer = trained(1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    noise = torch.get_rng_state()
    with pytest.raises(Damaged):
        restore(state, model, optimizer, COURSE)
    assert equal(dict(model.state_dict()), before) and torch.equal(torch.get_rng_state(), noise)


def _first(state):
    return next(iter(state["model"]))


CHANGES = [
    lambda s: s["model"].pop(_first(s)), lambda s: s["model"].update(more=torch.zeros(1)),
    lambda s: s["model"].update({_first(s): torch.zeros(2)}), lambda s: s["model"].update({_first(s): "weights"}),
    lambda s: s["model"].update({_first(s): s["model"][_first(s)].double()}),
    lambda s: s["model"].update({_first(s): s["model"][_first(s)].to_sparse()}),
    lambda s: s.update(model=[1]), lambda s: s.pop("model"), lambda s: s.pop("optimizer"), lambda s: s.pop("progress"),
    lambda s: s.update(progress=[]), lambda s: s.update(optimizer={}), lambda s: s.update(optimizer={"state": 3}),
    lambda s: s["optimizer"]["state"].pop(0), lambda s: s["optimizer"]["state"].update({10**9: {}}),
    lambda s: s["optimizer"]["state"].update({0: {"momentum_buffer": torch.zeros(1)}}),
    lambda s: s["optimizer"]["state"].update({0: {"step": torch.zeros(1)}}), lambda s: s.pop("rng"),
    lambda s: s.update(rng=torch.zeros(3, dtype=torch.uint8)), lambda s: s.update(rng=s["rng"].float()),
    lambda s: s.update(rng=torch.full_like(s["rng"], 255))]


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("change", CHANGES)
def test_content_that_does_not_fit_is_refused(whole, change):
    state = torch.load(io.BytesIO(whole), weights_only=True)
    change(state)
    refused(state)


def test_settings_of_the_optimiser_are_the_recipe_s_and_never_the_file_s(whole):
    state = torch.load(io.BytesIO(whole), weights_only=True)
    for group in state["optimizer"]["param_groups"]:
        group.update(momentum=1e9, weight_decay=-5.0, nesterov="yes", params=[7])
    model, optimizer = trained(0)
    expected = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    restore(state, model, optimizer, COURSE)
    assert [{key: value for key, value in group.items() if key != "params"}
            for group in optimizer.param_groups] == expected


# The disk.

def test_a_full_disk_leaves_both_generations_and_no_temporary_file(tmp_path, one):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", tmp_path], capture_output=True,
                             check=False)
    if mounted.returncode:
        pytest.skip("may not mount")
    try:
        path, before = tmp_path / "checkpoint.pt", tmp_path / "before.pt"
        for content, name in ((b"last", path), (b"one before", before)):
            name.write_bytes(content)
        (tmp_path / "rest").write_bytes(bytes(300_000))
        with pytest.raises(RunError) as error:
            checkpoint.save(path, "id", *one, PROGRESS, before=before)
        assert f"{path}: cannot be written: No space left on device" in str(error.value)
        assert "Check the free space" in str(error.value)
        assert sorted(os.listdir(tmp_path)) == ["before.pt", "checkpoint.pt", "rest"]
        assert (path.read_bytes(), before.read_bytes()) == (b"last", b"one before")
        subprocess.run(["mount", "-o", "remount,ro", tmp_path], check=True)
        with pytest.raises(RunError, match="Read-only file system"):
            checkpoint.save(path, "id", *one, PROGRESS, before=before)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_disk_that_refuses_is_a_run_error_wherever_it_does(tmp_path, one, monkeypatch):
    """As above, without the right to mount: the file cannot become larger than so many bytes."""
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    path, limits = tmp_path / "checkpoint.pt", resource.getrlimit(resource.RLIMIT_FSIZE)
    path.write_bytes(b"last")
    try:
        for most in (0, 100, 50_000, 200_000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
            with pytest.raises(RunError, match="cannot be written: File too large"):
                checkpoint.save(path, "id", *one, PROGRESS, before=tmp_path / "before.pt")
            assert os.listdir(tmp_path) == ["checkpoint.pt"] and path.read_bytes() == b"last"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)


def test_batch_norm_has_no_weight_decay():
    model, optimizer = trained(0)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    norms = {id(p) for m in model.modules() if isinstance(m, torch.nn.BatchNorm3d) for p in m.parameters()}
    assert 0 < len(norms) < len(decays)
    assert all(decays[id(p)] == (0.0 if id(p) in norms else 5e-5) for p in model.parameters())


def test_a_file_is_sealed_however_torch_hands_it_over(tmp_path):
    for content in ({}, {"a": 1}, {"a": torch.zeros(0)}, {"a": torch.arange(10**6), "b": "text" * 1000}):
        save_sealed(content, tmp_path / "c.pt")
        assert equal(torch.load(tmp_path / "c.pt", weights_only=True), {**content, IS_SEALED: True})
        assert checkpoint.load(tmp_path / "c.pt", "id") == (None, "of another training")
