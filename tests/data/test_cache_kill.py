"""The frame cache under the worst: builders that are killed, and several at once."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from expand.config.schema import DataConfig
from expand.data import prepare
from expand.data.frames.cache import FrameCache, frames_bytes, read_description
from tests.data.clips import PLENTY, decoded, frames_of, steady, write_clip

ROOT = Path(__file__).parents[2]
BUILD = """
import sys
from expand.config.schema import DataConfig
from expand.data import prepare
print("ready", flush=True)
data = prepare(DataConfig(path=sys.argv[1], cache_dir=sys.argv[2]), short_side=48, workers=int(sys.argv[3]))
print(data.fingerprint, flush=True)
"""

DIE_AT = """
import os, pathlib, sys
from expand.data.frames import cache
from expand.data.frames.cache import FrameCache
moment = int(sys.argv[3])
die = lambda *_: os.kill(os.getpid(), 9)
if moment == 0:
    FrameCache._decode_into = die
elif moment == 1:
    write, seen = FrameCache._write, []
    FrameCache._write = lambda *args: die() if len(seen) == 20 else (seen.append(1), write(*args))[1]
elif moment == 2:
    cache.pack_description = die
else:
    os.replace = die
FrameCache(pathlib.Path(sys.argv[2]), 1e9).get(pathlib.Path(sys.argv[1]), 0, 48)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Two classes of clips that take a moment to decode."""
    root = tmp_path_factory.mktemp("set")
    for number in range(12):
        split, name = ("train", "val")[number % 3 == 2], ("jump", "run")[number % 2]
        write_clip(root / split / name / f"{number}.mp4", steady(30, 3.0 + 0.1 * number), 128, 160)
    return root


def start_building(source, cache, workers=2):
    process = subprocess.Popen([sys.executable, "-c", BUILD, str(source), str(cache), str(workers)], cwd=ROOT,
                               stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def prepared(source, cache):
    config = DataConfig(path=str(source), cache_dir=str(cache))
    return prepare(config, short_side=48, workers=2)


def check_whole(data):
    for clip in data.train + data.val:
        assert (frames_of(clip) == decoded(clip.path, 48)).all()


def check_entries(frames):
    """Every file under its final name is whole, at whatever moment one looks."""
    for file in frames.glob("*.frames"):
        about = read_description(file)
        assert about and about["bytes"] == frames_bytes(about) > 0


def kill_amid(process, frames, draw):
    """Kill the builder once some more files, whole or not, have appeared, and a moment later."""
    def names():
        return {file.name for file in frames.glob("*-48.*")}

    known, more = names(), draw.randrange(1, 5)
    while process.poll() is None and len(names() - known) < more:
        time.sleep(0.001)
    time.sleep(draw.uniform(0.0, 0.02))
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("seed", range(2))
def test_a_builder_killed_at_any_moment_leaves_whole_entries_and_the_next_one_completes(tmp_path, source, seed):
    draw = random.Random(seed)
    for _ in range(2):
        kill_amid(start_building(source, tmp_path), tmp_path / "frames", draw)
        check_entries(tmp_path / "frames")
    data = prepared(source, tmp_path)  # while children of the killed one may still be at work
    assert all(clip.store is not None for clip in data.train + data.val)
    check_entries(tmp_path / "frames")
    check_whole(data)
    time.sleep(0.6)  # those end soon after their parent
    prepared(source, tmp_path)
    assert not list((tmp_path / "frames").glob("*.tmp"))


@pytest.mark.parametrize("moment", range(4))
def test_a_builder_killed_at_each_step_of_a_build_leaves_a_usable_cache(tmp_path, source, moment):
    """The moments that chance would hardly hit: claimed, half written, described, marked."""
    path = next(source.rglob("*.mp4"))
    process = subprocess.run([sys.executable, "-c", DIE_AT, str(path), str(tmp_path), str(moment)], cwd=ROOT,
                             check=False)
    assert process.returncode == -signal.SIGKILL
    assert [file.suffix for file in tmp_path.glob("*-48*")] == [".tmp"]
    clip = FrameCache(tmp_path, PLENTY).get(path, 0, 48)
    assert (frames_of(clip) == decoded(path, 48)).all() and not list(tmp_path.glob("*.tmp"))


def test_a_dead_builders_file_is_taken_over_before_it_is_swept(tmp_path, source):
    path, cache = next(source.rglob("*.mp4")), FrameCache(tmp_path, PLENTY)
    subprocess.run([sys.executable, "-c", DIE_AT, str(path), str(tmp_path), "1"], cwd=ROOT, check=False)
    assert list(tmp_path.glob("*.tmp"))
    clip = cache.get(path, 0, 48, last_round=False)
    assert (frames_of(clip) == decoded(path, 48)).all() and not list(tmp_path.glob("*.tmp"))


def test_processes_that_build_together_share_the_work_and_agree(tmp_path, source):
    processes = [start_building(source, tmp_path, workers=1) for _ in range(3)]
    found = {process.stdout.read() for process in processes}  # `communicate` misses what came along with "ready"
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0] and len(found) == 1
    assert len(list((tmp_path / "frames").glob("*.frames"))) == 12
    assert not list((tmp_path / "frames").glob("*.tmp"))
    check_whole(prepared(source, tmp_path))
