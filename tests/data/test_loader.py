from __future__ import annotations

import dataclasses
import multiprocessing
import os
import platform
import re
import resource
import signal
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from expand.config.schema import DataConfig
from expand.data import prepare
from expand.data.loading import pictures
from expand.data.loading.loader import Memory, TrainBatches, dead_worker, eval_loader, keep_freed_memory
from expand.errors import DataError
from expand.processes import CONTEXT, quiet_fork
from tests.data.clips import write_folder

SHAPE = {"frames": 3, "stride": 4, "resolution": 24, "batch_size": 4}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("loader")
    return DataConfig(path=str(write_folder(root / "set", clips=7)), cache_dir=str(root / "cache"))


@pytest.fixture(scope="module")
def data(config):
    return prepare(config, short_side=32, workers=1)


def training(data, config, **options):
    return TrainBatches(data, config=config, **{**SHAPE, "seed": 5, **options})


def epoch_of(data, config, *, epoch=2, start_batch=0, **options):
    with training(data, config, **options) as batches:
        return list(batches.epoch(epoch, start_batch))


def same(batches, others):
    return len(batches) == len(others) and all(torch.equal(a, b) for batch, other in zip(batches, others)
                                               for a, b in zip(batch, other))


def test_batches_have_the_promised_shapes_types_and_range(data, config):
    batches = epoch_of(data, config)
    assert [len(y_B) for _, y_B in batches] == [4, 4, 4, 2]
    for x_BCTHW, y_B in batches:
        assert x_BCTHW.shape == (len(y_B), 3, 3, 24, 24) and x_BCTHW.dtype == torch.float32
        assert y_B.dtype == torch.int64
        assert -2.0 - 1e-5 <= x_BCTHW.min() and x_BCTHW.max() <= (1 - 0.45) / 0.225 + 1e-5
    assert sorted(torch.cat([y_B for _, y_B in batches]).tolist()) == [0] * 7 + [1] * 7


def test_an_epoch_is_the_same_with_any_number_of_workers(data, config):
    assert same(epoch_of(data, config), epoch_of(data, config, workers=2))


def test_one_loader_gives_the_epochs_that_it_is_asked_for(data, config):
    """Also after an epoch that was left amid, and with processes that live on."""
    for workers in (0, 2):
        with training(data, config, workers=workers) as batches:
            assert same(list(batches.epoch(2)), epoch_of(data, config))
            left = iter(batches.epoch(7))
            assert same([next(left)], epoch_of(data, config, epoch=7)[:1])
            del left
            assert same(list(batches.epoch(3, start_batch=2)), epoch_of(data, config, epoch=3)[2:])
            again = batches.epoch(4)
            assert same(list(again), list(again))


def test_shares_make_up_the_batch(data, config):
    def half(rank):
        return lambda count: range(rank * count // 2, (rank + 1) * count // 2)

    halves = [epoch_of(data, config, share=half(rank), workers=rank) for rank in range(2)]
    together = [tuple(torch.cat(parts) for parts in zip(*pair)) for pair in zip(*halves, strict=True)]
    assert same(together, epoch_of(data, config))


def test_a_process_without_a_share_of_a_batch_gets_an_empty_one(data, config):
    for on_device in (False, True):
        for x, y in epoch_of(data, config, share=lambda count: range(0), on_device=on_device):
            assert x.shape == (0, 3, 3, 24, 24) and y.shape == (0,)


def test_a_clips_sample_does_not_hang_on_the_number_of_clips(data, config):
    """A clip's draws are its own: those of a set's first clips are the same in a larger set."""
    fewer = dataclasses.replace(data, train=data.train[:3])
    few = {tuple(x.flatten().tolist()) for x, _ in epoch_of(fewer, config, batch_size=1)}
    assert len(few) == 3 and few < {tuple(x.flatten().tolist()) for x, _ in epoch_of(data, config, batch_size=1)}


def test_an_epoch_can_be_entered_at_any_batch(data, config):
    whole = epoch_of(data, config)
    for start in range(5):
        assert same(whole[start:], epoch_of(data, config, start_batch=start))


def test_seed_and_epoch_change_order_and_samples(data, config):
    first = epoch_of(data, config)
    assert same(first, epoch_of(data, config))
    assert not same(first, epoch_of(data, config, epoch=3)) and not same(first, epoch_of(data, config, seed=6))


def test_reading_leaves_the_callers_random_stream_alone(data, config):
    before = torch.get_rng_state()
    epoch_of(data, config)
    epoch_of(data, config, workers=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_samples_randomness_does_not_hang_on_its_batch(data, config):
    small = torch.cat([x for x, _ in epoch_of(data, config, batch_size=2)])
    assert torch.equal(small, torch.cat([x for x, _ in epoch_of(data, config, batch_size=4)]))


def test_a_last_batch_of_one_clip_is_left_out(data, config):
    assert [len(y_B) for _, y_B in epoch_of(data, config, batch_size=13)] == [13]
    assert len(training(data, config, batch_size=13).epoch(0)) == 1
    assert [len(y_B) for _, y_B in epoch_of(data, config, batch_size=1)] == [1] * 14


def test_frames_of_a_sample_are_the_stride_apart_in_time(data, config):
    """The clips' grey level rises by 60 a second, so the time between frames can be read off."""
    for x_BCTHW, _ in epoch_of(data, config, frames=2, stride=6):
        grey_BT = (x_BCTHW * 0.225 + 0.45).mean(dim=(1, 3, 4)) * 255
        assert ((grey_BT[:, 1] - grey_BT[:, 0]) / 60 - 0.2).abs().max() < 1 / 12 + 0.05


def with_ramp(data, tmp_path):
    """The first train clip alone, its frames replaced by a ramp from left to right."""
    clip = data.train[0]
    ramp = np.broadcast_to(np.arange(clip.width, dtype=np.uint8)[:, None] * 4, (clip.height, clip.width, 3))
    store = tmp_path / "ramp.frames"
    store.write_bytes(ramp.tobytes() * len(clip.times_s))
    return dataclasses.replace(data, train=(dataclasses.replace(clip, store=store),) * 2)


def test_flips_happen_half_of_the_time_and_never_where_turned_off(data, config, tmp_path):
    ramp = with_ramp(data, tmp_path)

    def rising(config):
        return [bool(x[0, 0, 0, 0, -1] > x[0, 0, 0, 0, 0]) for epoch in range(60)
                for x, _ in epoch_of(ramp, config, epoch=epoch, batch_size=1)]

    assert all(rising(dataclasses.replace(config, flip=False)))
    assert 0.3 < np.mean(rising(config)) < 0.7


def test_turning_the_flip_off_changes_nothing_else(data, config):
    off = epoch_of(data, dataclasses.replace(config, flip=False))
    for (x, _), (plain, _) in zip(epoch_of(data, config), off):
        for sample, expected in zip(x, plain):
            assert torch.equal(sample, expected) or torch.equal(sample.flip(-1), expected)


def test_jitter_decides_how_much_of_the_frame_is_seen(data, config, tmp_path):
    ramp = with_ramp(data, tmp_path)

    def spans(jitter):
        fixed = dataclasses.replace(config, jitter_min=jitter, jitter_max=jitter)
        return [float((x[0, 0, 0, 0, -1] - x[0, 0, 0, 0, 0]).abs()) * 0.225 * 255 / 4
                for epoch in range(5) for x, _ in epoch_of(ramp, fixed, epoch=epoch, batch_size=1)]

    assert spans(1.0) == pytest.approx([31] * 10, abs=1.5) and spans(2.0) == pytest.approx([15] * 10, abs=1.5)


def test_evaluation_gives_every_view_of_every_clip_in_order(data, config):
    batches = list(eval_loader(data.val, frames=2, stride=3, resolution=24, views=3, batch_size=5, config=config))
    x, y, index = (torch.cat(parts) for parts in zip(*batches))
    assert x.shape == (42, 3, 2, 27, 27) and index.tolist() == [number for number in range(14) for _ in range(3)]
    assert y.tolist() == [data.val[number].label for number in index.tolist()]
    again = eval_loader(data.val, frames=2, stride=3, resolution=24, views=3, batch_size=7, config=config, workers=2)
    assert torch.equal(x, torch.cat([batch[0] for batch in again]))
    grey = (x.mean(dim=(1, 2, 3, 4)).reshape(14, 3) * 0.225 + 0.45) * 255
    assert (grey[:, 2] > grey[:, 1]).all() and (grey[:, 1] > grey[:, 0]).all()  # later views are brighter


def test_three_crops_of_each_time_follow_one_another(data, config):
    def views(crops, batch_size):
        batches = list(eval_loader(data.val, frames=2, stride=3, resolution=24, views=3, batch_size=batch_size,
                                   config=config, crops=crops))
        return batches, *(torch.cat(parts) for parts in zip(*batches))

    batches, x, y, index = views(3, 8)
    assert [len(labels) for _, labels, _ in batches] == [6] * 21  # 8 would tear the crops of a time apart
    assert index.tolist() == [number for number in range(14) for _ in range(9)]
    assert y.tolist() == [data.val[number].label for number in index.tolist()]
    assert torch.equal(x[1::3], views(1, 5)[1])
    assert torch.equal(x, views(3, 1)[1])


@pytest.mark.parametrize("turned", [False, True])
def test_three_crops_show_both_ends_of_the_longer_side(data, config, tmp_path, turned):
    clip = data.val[0]
    ramp_HW = np.broadcast_to(np.arange(48, dtype=np.uint8) * 4, (32, 48))
    height, width = (48, 32) if turned else (32, 48)
    frame_HWC = np.repeat((ramp_HW.T if turned else ramp_HW)[..., None], 3, axis=2)
    store = tmp_path / "ramp.frames"
    store.write_bytes(frame_HWC.tobytes() * len(clip.times_s))
    clips = [dataclasses.replace(clip, store=store, height=height, width=width)]
    loader = eval_loader(clips, frames=1, stride=1, resolution=28, views=1, batch_size=3, config=config, crops=3)
    greys_BHW = (next(iter(loader))[0][:, 0, 0] * 0.225 + 0.45) * 255
    assert greys_BHW.shape == (3, 32, 32)
    lines_BL = greys_BHW[:, :, 0] if turned else greys_BHW[:, 0]
    for first, line_L in zip((0, 8, 16), lines_BL, strict=True):
        assert line_L.tolist() == pytest.approx([4 * (first + number) for number in range(32)], abs=0.01)


@pytest.mark.parametrize("resolution, side", [(160, 182), (224, 256)])
def test_evaluation_crops_are_the_published_ones(data, config, resolution, side):
    loader = eval_loader(data.val[:1], frames=1, stride=1, resolution=resolution, views=1, batch_size=1, config=config)
    assert next(iter(loader))[0].shape == (1, 3, 1, side, side)


@pytest.mark.parametrize("workers", [0, 1])
def test_frames_that_are_not_kept_give_the_same_batches(data, config, workers):
    bare = dataclasses.replace(data, train=tuple(dataclasses.replace(clip, store=None) for clip in data.train))
    assert same(epoch_of(data, config), epoch_of(bare, config, workers=workers))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_clip_that_vanishes_is_a_clear_error_from_any_process(data, config, tmp_path, workers):
    gone = tuple(dataclasses.replace(clip, store=None, path=tmp_path / "gone") for clip in data.train)
    with pytest.raises(DataError) as raised:
        epoch_of(dataclasses.replace(data, train=gone), config, workers=workers)
    assert raised.value.where == str(tmp_path / "gone") and "Traceback" not in str(raised.value)


def grey_levels_apart(batches, others):
    """Of the same pixels in two ways: mean and largest difference, grey levels."""
    apart = torch.cat([(x - other).abs().flatten() for (x, *_), (other, *_) in zip(batches, others, strict=True)])
    return (apart * 0.225 * 255).mean(), (apart * 0.225 * 255).max()


@pytest.mark.parametrize("resolution", [12, 24, 40])
def test_pictures_made_on_a_device_are_the_same_but_for_rounding(data, config, tmp_path, resolution):
    """Of noise, the hardest pictures; the device is the CPU."""
    rng, noisy = np.random.default_rng(3), []
    for number, clip in enumerate(data.train):
        store = tmp_path / f"{number}.frames"
        store.write_bytes(rng.bytes(len(clip.times_s) * clip.height * clip.width * 3))
        noisy.append(dataclasses.replace(clip, store=store))
    noisy = dataclasses.replace(data, train=tuple(noisy))
    here = epoch_of(noisy, config, resolution=resolution)
    there = epoch_of(noisy, config, resolution=resolution, on_device=True, workers=1)
    assert all(torch.equal(y, other) for (_, y), (_, other) in zip(here, there, strict=True))
    assert all(x.is_contiguous(memory_format=torch.channels_last_3d) and x.dtype == torch.float32 for x, _ in there)
    mean, largest = grey_levels_apart(here, there)
    assert mean < 0.4 and largest < 1.6


def test_evaluation_on_a_device_is_the_same_but_for_rounding(data, config):
    options = {"frames": 2, "stride": 3, "resolution": 24, "views": 2, "batch_size": 5, "config": config, "crops": 3}
    here = list(eval_loader(data.val, **options))
    there = list(eval_loader(data.val, on_device=True, **options))
    assert same([batch[1:] for batch in here], [batch[1:] for batch in there])
    assert grey_levels_apart(here, there)[1] < 1.6


def children():
    pids = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has just ended
            pids.update(map(int, (task / "children").read_text().split()))
    return pids


only_linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes as Linux shows them")


@only_linux
def test_processes_outlive_an_epoch_but_not_the_loader(data, config):
    before = children()
    with training(data, config, workers=2) as batches:
        list(batches.epoch(0))
        workers = children() - before
        assert len(workers) == 2
        list(batches.epoch(1))
        assert children() - before == workers
    assert children() == before


@only_linux
def test_a_loader_that_is_dropped_amid_an_epoch_leaves_no_process(data, config):
    before = children()
    batches = training(data, config, workers=2)
    started = iter(batches.epoch(0))
    next(started)
    assert len(children() - before) == 2
    del batches, started
    assert children() == before
    evaluated = iter(eval_loader(data.val, frames=2, stride=3, resolution=24, views=1, batch_size=2, config=config,
                                 workers=1))
    next(evaluated)
    del evaluated
    assert children() == before


@only_linux
def test_closing_ends_the_processes_though_an_epoch_is_still_held(data, config):
    before = children()
    with training(data, config, workers=2) as batches:
        held = iter(batches.epoch(0))
        next(held)
    assert children() == before
    assert next(held, None) is None


@only_linux
def test_the_death_of_a_loader_process_is_a_clear_error(data, config):
    before = children()
    with pytest.raises(DataError, match="a process that reads clips died"), \
            training(data, config, workers=1, batch_size=1) as batches:
        for number, _ in enumerate(batches.epoch(0)):
            if number == 1:
                (worker,) = children() - before
                os.kill(worker, signal.SIGKILL)
                with suppress(RuntimeError):  # torch may tell at once, wherever the program is
                    time.sleep(0.2)
    assert children() == before


KILLED = "DataLoader worker (pid 7) is killed by signal: "
CAUGHT = "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback ...\nRuntimeError: "


@pytest.mark.parametrize("words, what, fix", [
    (f"{KILLED}Killed. ", "a process that reads clips died", "start again"),
    ("DataLoader worker (pid(s) 7, 8) exited unexpectedly", "a process that reads clips died", "start again"),
    (f"{KILLED}Bus error. It is possible that dataloader's workers are out of shared memory.", "too small", "shm-size"),
    (f"{CAUGHT}unable to allocate shared memory(shm) for file </torch_1_2_3>\n", "too small", "shm-size"),
    (f"{CAUGHT}some reason\n", "a process that reads clips failed: RuntimeError: some reason", "start again")])
def test_what_ends_a_loader_process_is_told_apart(words, what, fix):
    """Words as torch has them."""
    error = dead_worker(RuntimeError(words))
    assert re.search(what, error.what) and fix in error.fix and "\n" not in error.what


def test_other_errors_are_no_loader_processs():
    assert dead_worker(RuntimeError("some reason")) is None and dead_worker(None) is None


@only_linux
def test_loader_processes_are_forked_whatever_python_would_choose(data, config, monkeypatch):
    """Python 3.14 chooses otherwise, and a caller's script would need `if __name__ == "__main__"`."""
    monkeypatch.setattr(pictures, "read_into", lambda rows_TB, clip, index_T, top: rows_TB.fill(0))
    # which a process that is not forked would not know
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)
    try:
        batches = epoch_of(data, config, workers=1)
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert {len(x_BCTHW.unique()) for x_BCTHW, _ in batches} == {1}


def test_memory_is_used_again_only_when_no_reference_to_the_batch_is_left(data, config):
    kept = epoch_of(data, config)
    assert same(kept, [(x.clone(), y) for x, y in epoch_of(data, config)])
    memory, float32 = Memory(), torch.float32
    first = memory.tensor((2, 3), float32).fill_(1.0)
    row, address = first[1], first.data_ptr()
    del first
    assert memory.tensor((2, 3), float32).data_ptr() != address and row.tolist() == [1.0, 1.0, 1.0]
    weight = torch.ones(3, requires_grad=True)
    product = (weight * row).sum()
    del row
    other = memory.tensor((6,), float32).fill_(7.0)
    product.backward()  # autograd held it
    assert weight.grad.tolist() == [1.0, 1.0, 1.0] and other.data_ptr() != address
    del product
    assert address in {memory.tensor((1, 5), float32).data_ptr(), other.data_ptr()}


def faults_of_a_second_filling(found):
    keep_freed_memory()
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        np.ones(100_000_000, dtype=np.uint8)
        found.value = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an option of glibc's")
def test_memory_that_was_freed_is_not_faulted_in_anew():
    found = CONTEXT.Value("q", -1)
    child = CONTEXT.Process(target=faults_of_a_second_filling, args=(found,))  # the option is a process's, for good
    with quiet_fork():
        child.start()
    child.join()
    assert 0 <= found.value < 20
