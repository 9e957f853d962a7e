from __future__ import annotations

import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest

from expand.errors import RunError, UsageError
from expand.report.plots import Placer, expansion_figure, plot_expansion
from expand.report.summary import summarize

Make = Callable[..., Any]
PATH = ("x_bottleneck", "x_fast", "x_spatial", "x_depth")


def svg_texts(path: Path) -> list[str]:
    root = ElementTree.parse(path).getroot()
    return ["".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")]


def drawn(search: Any, folder: Path) -> list[str]:
    return svg_texts(plot_expansion(summarize(search.paths.root), folder / "plot.svg"))


def test_a_png_is_written_at_twice_the_width_of_a_readme(finished: Any, tmp_path: Path) -> None:
    out = plot_expansion(summarize(finished.paths.root), tmp_path / "new" / "plot.png")
    content = out.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", content[16:24]) == (1800, 1120)
    assert [entry.name for entry in out.parent.iterdir()] == ["plot.png"]


def test_the_figure_names_axes_values_target_and_split(finished: Any, tmp_path: Path) -> None:
    texts = drawn(finished, tmp_path)
    whole = " ".join(texts)
    for part in ("GFLOPs (10⁹ multiply-adds of one clip), log scale", "top-1 accuracy on val, %", "X-Fast",
                 "X-Temporal", "X-Fast = X-Temporal", "X-Spatial", "X-Depth", "X-Width", "X-Bottleneck", "basis",
                 "γb 2.25", "2 frames × 14", "160 px", "γd 2.2", "contracted", "γd 1.7", "contraction", "chosen path",
                 "failed", "target 0.25 GFLOPs", "final training", "on test"):
        assert part in whole, part
    assert "selected on it" not in whole


def test_the_figure_of_a_run_without_test_says_that_val_also_selected(fake_search: Make, tmp_path: Path) -> None:
    texts = drawn(fake_search(test_clips=0).basis().steps(PATH).contract().end(), tmp_path)
    assert "on val, also selected on it" in texts


def test_complexities_on_the_scale_are_plain_numbers(finished: Any, tmp_path: Path) -> None:
    texts = drawn(finished, tmp_path)
    assert {"0.02", "0.05", "0.1", "0.2"} <= set(texts)
    assert not [text for text in texts if re.fullmatch(r".*\d[eE][-+]?\d.*|.*10\^.*", text)]


def test_every_chosen_network_is_labelled_and_no_label_covers_another(fake_search: Make) -> None:
    path = (*PATH, "x_temporal", "x_fast", "x_temporal", "x_spatial", "x_spatial", "x_depth", "x_width")
    search = fake_search(target=25.0).basis().steps(path, failing=None).contract().end()
    figure = expansion_figure(summarize(search.paths.root))
    axes = figure.axes[0]
    labels = [text for text in axes.texts if text.get_text() and text.get_transform() != axes.transAxes
              and not text.get_text().startswith("target")]
    texts = [text.get_text() for text in labels]
    for name in ("basis", "X-Bottleneck", "X-Fast = X-Temporal", "X-Fast", "X-Width", "contracted", "final"):
        assert any(text.startswith(name) for text in texts), name
    assert sum(text.startswith(("X-", "basis")) for text in texts) == 12
    boxes = [text.get_window_extent() for text in labels]
    overlaps = [(texts[i], texts[j]) for i, one in enumerate(boxes) for j, other in enumerate(boxes[:i])
                if min(one.x1, other.x1) - max(one.x0, other.x0) > 2
                and min(one.y1, other.y1) - max(one.y0, other.y0) > 2]
    assert overlaps == []


@pytest.mark.parametrize("stage", ["start", "basis waits", "basis", "step open", "step half", "all failed",
                                   "contraction waits", "contraction failed", "contraction without network"])
def test_an_unfinished_run_gives_a_figure(fake_search: Make, tmp_path: Path, stage: str) -> None:
    search = fake_search()
    if stage != "start":
        search.basis(finish=stage != "basis waits")
    if stage.startswith("step"):
        candidates = search.propose()
        if stage == "step half":
            search.finish(candidates[0], 0.3)
    if stage == "all failed":
        for candidate in search.propose():
            search.finish(candidate, None, "out of memory")
    if stage.startswith("contraction"):
        search.steps(PATH[:1])
        if stage.endswith("network"):
            search.event("contraction_proposed", axis="x_bottleneck", candidate=None, reason="nothing between fits")
        else:
            search.contract(finish=False)
    if stage == "contraction failed":
        search.finish({"id": "s02-contraction", "gflops": 0.1}, None, "out of memory")
    texts = drawn(search, tmp_path)
    assert "target 0.25 GFLOPs" in texts
    assert ("no candidate has finished yet" in texts) == (stage in ("start", "basis waits"))
    assert ("no accuracy" in texts) == (stage not in ("start", "basis", "contraction without network"))


def test_an_accuracy_of_nought_or_one_is_in_the_figure(fake_search: Make, tmp_path: Path) -> None:
    search = fake_search()
    search.accuracy = 0.0
    search.basis()
    for candidate in search.propose():
        search.finish(candidate, 1.0)
    texts = drawn(search, tmp_path)
    assert {"0", "100"} <= set(texts)
    assert "120" not in texts


@pytest.mark.parametrize("name", ["plot.pdf", "plot", "plot.jpeg", "plot.png.txt"])
def test_another_kind_of_file_is_refused(finished: Any, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot draw") as caught:
        plot_expansion(summarize(finished.paths.root), tmp_path / name)
    assert ".png or .svg" in str(caught.value)
    assert not (tmp_path / name).exists()


def test_a_place_that_cannot_be_written_is_told(finished: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        plot_expansion(summarize(finished.paths.root), tmp_path / "file" / "plot.png")


def test_the_same_run_gives_the_same_svg_and_global_settings_stay(finished: Any, tmp_path: Path) -> None:
    summary, before = summarize(finished.paths.root), dict(matplotlib.rcParams)
    first = plot_expansion(summary, tmp_path / "a.svg").read_bytes()
    assert plot_expansion(summary, tmp_path / "b.svg").read_bytes() == first
    assert dict(matplotlib.rcParams) == before


def test_neither_pyplot_nor_torch_is_loaded(tmp_path: Path) -> None:
    code = "import sys; import expand.report.plots, expand.report.summary, expand.report.tables; " \
           "print([name for name in ('torch', 'matplotlib.pyplot') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "[]"


def test_a_label_without_room_is_left_out_unless_it_must_stand(finished: Any) -> None:
    figure = expansion_figure(summarize(finished.paths.root))
    axes = figure.axes[0]
    placer, centre = Placer(axes), (0.05, 40.0)
    placer.keep_off_points([centre], radius=200)
    assert placer.place("no room", centre, must=False, fontsize=8) is False
    assert placer.place("must stand", centre, must=True, fontsize=8) is True
    assert [text.get_text() for text in axes.texts if text.get_text() in ("no room", "must stand")] == ["must stand"]
