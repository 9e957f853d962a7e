"""What systems, cameras, NAS and programs leave among clips is passed over; proxies go with their originals."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from expand.config.schema import DataConfig
from expand.data.sources import list_clips
from expand.data.sources.clip import ClipList
from expand.data.sources.walk import is_proxy, recording_name
from expand.errors import DataError
from tests.data.test_sources import touch

CLIPS = [f"{name}/{name}{number}.mp4" for name in ("run", "jump") for number in range(5)]


def listed(root: Path, **options) -> ClipList:
    return list_clips(DataConfig(path=str(root), **options))


def names(root: Path, **options) -> list[str]:
    return sorted(str(clip.path.relative_to(root)) for clip in listed(root, **options).clips)


def passed(root: Path) -> str:
    return next((note for note in listed(root).notes if note.startswith("passed over")), "")


@pytest.mark.parametrize("left", [
    "run/@eaDir/run0.mp4/SYNOPHOTO_THUMB_M.jpg", "run/@eaDir/run0.mp4/SYNOVIDEO_FILM_H264.mp4", "@eaDir/x/t.jpg",
    "run/#recycle/run9.mp4", "#recycle/x.mp4", "run/@Recycle/run9.mp4", "@Recently-Snapshot/d/run/run0.mp4",
    "~snapshot/d/run0.mp4", "#snapshot/GMT+01-2023.01.01/run/run0.mp4", "$RECYCLE.BIN/S-1-5/$R123456.mp4",
    "RECYCLER/x.mp4", "RECYCLED/x.mp4", "trashbox/run/x.mp4", "run/Recycle Bin/x.mp4", "RecycleBin/x.mp4",
    "System Volume Information/x.mp4", "FOUND.000/FILE0000.mp4", "lost+found/#123.mp4",
    "__MACOSX/run/x.mp4", "run/__MACOSX/x.mp4", "run/Network Trash Folder/x.mp4", "run/Temporary Items/x.mp4",
    "run/@Transcode/720p/run0.mp4", "run/__pycache__/x.pyc", "run/Adobe Premiere Pro Video Previews/a.PRV/x.mpeg",
    "run/ProxyMedia/run0.mov", "run/CacheClip/x.dvcc",
    "run/Render Files/x.mov", "run/Lightroom Previews.lrdata/x.lrprev",
    "run/x.LRV", "run/x.lrf", "run/x.GLV", "run/x.THM", "run/x.CTG", "run/x.MODD", "run/x.moff", "run/AVIN0001.BNP",
    "run/AVIN0001.INT", "run/x.CPI", "run/x.MPL", "run/INDEX.BDM", "run/x.CIF", "run/x.XMF", "run/C0001M01.XML",
    "run/x.SRT", "run/x.SCR", "run/x.gpr", "run/x.insp", "run/x.xmp", "run/x.AAE", "run/x.nfo", "run/x.ass",
    "run/x.idx",
    "run/x.sub", "run/x.lrc", "run/x.mp3", "run/x.wav", "run/x.m4a", "run/x.opus", "run/x.mp4.part", "run/x.crdownload",
    "run/x.mp4.!qB", "run/x.tmp", "run/x.mp4.aria2", "run/x.mp4.ytdl", "run/x.mp4.part-Frag3", "run/x.md5", "run/x.sfv",
    "run/x.par2", "run/x.torrent", "run/x.info.json", "run/x.description", "run/x.annotations.xml", "run/x.plist",
    "run/x.docx", "run/x.tar.gz", "run/x.pth", "run/x.pickle", "run/x.CR2", "run/x.dng", "run/x.HEIC", "run/x.bmp",
    "run/x.tif", "run/x.webp", "run/run0.mp4~", "run/x.mp4.bak", "run/x.orig", "run/~$x.docx", "run/#x#", "run/README",
    "run/SHA256SUMS", "run/Desktop.ini", "run/ehthumbs.db", "run/Icon\r", "run/._run0.mp4", "run/.run9.mp4.icloud",
    "run/Thumbs/x.jpg", "run/Previews/x.png", "run/x.url", "run/x.m3u8",
    "run/run0.sync-conflict-20230101-101010-ABCDEFG.mp4"])
def test_what_is_left_beside_clips_is_no_clip_and_is_counted(tmp_path, left):
    assert names(touch(tmp_path, *CLIPS, left)) == sorted(CLIPS)
    assert "passed over 1 file that is no clip: 1 " in passed(tmp_path), "in a folder of classes"
    split = [f"{part}/{clip}" for part in ("train", "val") for clip in CLIPS]
    root = touch(tmp_path / "set", *split, f"train/{left}")
    assert names(root) == sorted(split) and "passed over 1 file" in passed(root), "in a folder of splits"


@pytest.mark.parametrize("left", ["run/.DS_Store", "run/.nomedia", ".Trashes/x.mp4", "run/.Trash-1000/files/x.mp4",
                                  ".git/x.mp4", "run/.thumbnails/x.jpg", ".@__thumb/x.jpg", ".stversions/run/x.mp4",
                                  "run/.AppleDouble/run0.mp4", ".dropbox.cache/x.mp4", ".Spotlight-V100/x"])
def test_hidden_files_and_folders_are_no_clips(tmp_path, left):
    assert names(touch(tmp_path, *CLIPS, left)) == sorted(CLIPS)


@pytest.mark.parametrize("name", ["run0.mp4", "run.MTS", "a.ogv", "a.gif", "a.insv", "a.360", "a.xyz", "nosuffix",
                                  "a.ts", "a.mod", "v1.2", "clip.0001"])
def test_videos_and_files_of_unknown_kinds_are_tried(tmp_path, name):
    assert names(touch(tmp_path, *CLIPS[5:], f"run/{name}", "run/z.mp4")) == sorted([*CLIPS[5:], f"run/{name}",
                                                                                     "run/z.mp4"])


def test_many_kinds_are_said_in_one_line_by_their_number(tmp_path):
    touch(tmp_path, *CLIPS, *(f"run/x{n}.{suffix}" for n, suffix in enumerate(["lrv"] * 3 + ["thm"] * 2 + [
        "srt", "xml", "txt", "zip", "wav", "md5", "xmp"])))
    assert passed(tmp_path).startswith("passed over 12 files that are no clips: 3 .lrv (proxies), 2 .thm (thumbnails)")
    assert passed(tmp_path).endswith(" others")


@pytest.mark.parametrize(("files", "clips"), [
    (["PRIVATE/M4ROOT/CLIP/C0001.MP4", "PRIVATE/M4ROOT/CLIP/C0001M01.XML", "PRIVATE/M4ROOT/SUB/C0001S03.MP4",
      "PRIVATE/M4ROOT/THMBNL/C0001T01.JPG", "PRIVATE/M4ROOT/GENERAL/x.mp4", "PRIVATE/M4ROOT/MEDIAPRO.XML"],
     ["PRIVATE/M4ROOT/CLIP/C0001.MP4"]),
    (["AVCHD/BDMV/STREAM/00000.MTS", "AVCHD/BDMV/CLIPINF/00000.CPI", "AVCHD/BDMV/PLAYLIST/00000.MPL",
      "AVCHD/BDMV/INDEX.BDM", "AVCHD/BDMV/BACKUP/x", "AVCHD/AVCHDTN/THUMB.TID"], ["AVCHD/BDMV/STREAM/00000.MTS"]),
    (["CONTENTS/VIDEO/0001AB.MXF", "CONTENTS/AUDIO/0001AB00.MXF", "CONTENTS/PROXY/0001AB.MP4",
      "CONTENTS/ICON/0001AB.BMP", "CONTENTS/CLIP/0001AB.XML", "CONTENTS/VOICE/0001.WAV"],
     ["CONTENTS/VIDEO/0001AB.MXF"]),
    (["DCIM/100GOPRO/GX010001.MP4", "DCIM/100GOPRO/GL010001.LRV", "DCIM/100GOPRO/GX010001.THM"],
     ["DCIM/100GOPRO/GX010001.MP4"]),
    (["VID_20230101_101010_00_001.insv", "LRV_20230101_101010_01_001.insv"], ["VID_20230101_101010_00_001.insv"]),
    (["BPAV/CLPR/A1/A1.MP4", "BPAV/CLPR/A1/A1M01.XML", "BPAV/CLPR/A1/A1R01.BIM", "BPAV/CLPR/A1/A1.SMI"],
     ["BPAV/CLPR/A1/A1.MP4"])])
def test_of_a_cameras_folders_the_recordings_alone_are_clips(tmp_path, files, clips):
    touch(tmp_path, *CLIPS, *(f"run/{file}" for file in files))
    assert names(tmp_path) == sorted([*CLIPS, *(f"run/{clip}" for clip in clips)])


@pytest.mark.parametrize("proxy", ["GL010001.MP4", "C0007S03.MP4", "day1_thm.mp4", "day1_proxy.mov", "day1-proxy.mp4",
                                   "day1_lowres.mp4", "day1.lrv.mp4", "day1_lo-res.mp4", "Proxy/day1.mp4",
                                   "proxies/day1_proxy.mp4"])
def test_a_proxy_whose_original_is_in_its_class_is_passed_over_also_in_another_split(tmp_path, proxy):
    originals = ["run/GX010001.MP4", "run/C0007.MP4", "run/day1.mp4"]
    assert names(touch(tmp_path / "one", *CLIPS, *originals, f"run/{proxy}")) == sorted([*CLIPS, *originals])
    assert "1 proxies beside their originals" in passed(tmp_path / "one")
    split = [*(f"train/{clip}" for clip in (*CLIPS, *originals)), *(f"val/{clip}" for clip in CLIPS)]
    assert names(touch(tmp_path / "two", *split, f"val/run/{proxy}")) == sorted(split)
    alone = touch(tmp_path / "alone", *CLIPS, f"run/{proxy}", "jump/day1.mp4")
    assert f"run/{proxy}" in names(alone), "without its original it is the user's only copy"


@pytest.mark.parametrize("pair", [("a_720p.mp4", "a_1080p.mp4"), ("a.mp4", "a.avi"), ("a-4K.mov", "a-hd.mov"),
                                  ("720p/a.mp4", "1080p/a.mp4"), ("GX010001.MP4", "GH010001.MP4"),
                                  ("a.f137.mp4", "a.mp4"),
                                  ("a_1920x1080.mp4", "a_640x360.mp4"), ("a_original.mp4", "a_x264.mp4")])
def test_one_recording_in_two_qualities_is_never_parted_by_a_made_split(tmp_path, pair):
    touch(tmp_path, *CLIPS, *(f"{label}/{file}" for label in ("run", "jump") for file in pair))
    for seed in range(8):
        clips = listed(tmp_path, split_seed=seed, val_share=0.5).clips
        for label in ("run", "jump"):
            assert len({clip.split for clip in clips for file in pair if clip.path == tmp_path / label / file}) == 1


def test_two_qualities_in_given_splits_are_said_and_equal_numbers_are_not(tmp_path):
    touch(tmp_path, *(f"{split}/{clip}" for split in ("train", "val") for clip in CLIPS), "val/jump/jump1.avi")
    assert not listed(tmp_path).notes
    touch(tmp_path, "train/run/day1_1080p.mp4", "val/run/day1_720p.mp4")
    (note,) = listed(tmp_path).notes
    assert note.startswith("1 recording in two qualities in two splits") and "val/run/day1_720p.mp4 in val" in note


@pytest.mark.parametrize(("one", "other", "same"), [
    ("GX010001", "GL010001", True), ("C0001", "C0001S03", True), ("a_720p", "a_1080p", True), ("a", "a_proxy", True),
    ("video_720", "video_1080", False), ("S001C001P001", "S001C001P002", False), ("a_hd_2", "a_sd_2", True),
    ("person01_walk_d1", "person01_walk_d2", False), ("GX010001", "GX010002", False), ("jump_high", "jump_low", False)])
def test_names_tell_a_quality_from_another_recording(one, other, same):
    assert (recording_name(one) == recording_name(other)) is same


def test_a_group_of_the_users_own_goes_before_a_quality(tmp_path):
    touch(tmp_path, *(f"{label}/s{n}_a_{q}p.mp4" for label in ("run", "jump") for n in range(4) for q in (720, 1080)))
    clips = listed(tmp_path, group=r"(s\d)_").clips
    assert {clip.group for clip in clips} == {"s0", "s1", "s2", "s3"} and not is_proxy("s0_a_720p")


def test_a_class_that_is_called_like_a_folder_of_thumbnails_or_proxies_stays_one(tmp_path):
    touch(tmp_path, *(f"{name}/{n}.mp4" for name in ("thumbs", "proxy", "audio", "hd") for n in range(3)))
    assert Counter(clip.label for clip in listed(tmp_path).clips) == {0: 3, 1: 3, 2: 3, 3: 3}


def test_thumbnails_or_proxies_of_all_classes_beside_them_are_no_class(tmp_path):
    touch(tmp_path, *CLIPS, *(f"Proxies/{clip}" for clip in CLIPS), "thumbs/run/1.jpg", "thumbs/run/2.jpg")
    assert names(tmp_path) == sorted(CLIPS) and "10 in Proxies, 1 in thumbs" in passed(tmp_path)
    assert "no clips in" not in "".join(listed(tmp_path).notes)


def test_a_list_keeps_what_it_names(tmp_path):
    touch(tmp_path, "a.mp4", "a_proxy.mp4")
    (tmp_path / "train.csv").write_text("a.mp4 run\na_proxy.mp4 run\nb.mp4 jump\nc.mp4 jump\nd.mp4 run\n")
    clips = listed(tmp_path).clips
    assert len(clips) == 5 and len({clip.split for clip in clips if clip.path.name.startswith("a")}) == 1


def test_published_annotations_find_no_leftovers(tmp_path):
    (tmp_path / "train.csv").write_text("label,youtube_id,time_start,time_end,split\n" + "".join(
        f"{label},id{label}{n},0,10,train\n" for label in ("run", "jump") for n in range(3)))
    touch(tmp_path, *(f"videos/id{label}{n}_000000_000010.mp4" for label in ("run", "jump") for n in range(3)),
          "videos/idrun0_000000_000010.mp4.part", "videos/idrun0_000000_000010.LRV", "videos/idrun0_000000_000010.wav",
          "videos/@eaDir/idrun0_000000_000010.mp4/SYNOPHOTO_THUMB_M.jpg", "#recycle/idrun1_000000_000010.mp4")
    clips = listed(tmp_path, format="kinetics").clips
    assert len(clips) == 6 and all(clip.path.parent.name == "videos" and clip.path.suffix == ".mp4" for clip in clips)


@pytest.mark.parametrize("suffix", ["bmp", "tif", "tiff", "webp", "ppm", "pgm", "jp2", "tga", "jpeg"])
def test_folders_of_pictures_of_any_format_that_is_read_are_clips(tmp_path, suffix):
    touch(tmp_path, *(f"{label}/c{clip}/{n:03}.{suffix}" for label in ("run", "jump") for clip in range(3)
                      for n in range(4)))
    assert names(tmp_path) == sorted(f"{label}/c{clip}" for label in ("run", "jump") for clip in range(3))


@pytest.mark.parametrize("suffix", ["heic", "exr", "cr2", "dng", "avif", "psd"])
def test_folders_of_pictures_of_a_format_that_is_not_read_are_refused_by_name(tmp_path, suffix):
    touch(tmp_path, *CLIPS, *(f"run/c1/{n:03}.{suffix}" for n in range(4)))
    with pytest.raises(DataError, match=rf"(?s)not read:\n.*run/c1: \.{suffix}") as raised:
        listed(tmp_path)
    assert "convert them to JPEG or PNG" in str(raised.value)


def test_class_folders_without_a_clip_are_named(tmp_path):
    touch(tmp_path, *CLIPS, "empty/readme.txt", "photos/1.jpg", "photos/2.jpg")
    assert "no clips in empty, photos: not among the classes" in listed(tmp_path).notes
    touch(tmp_path / "proxies", "a/x.LRV", "b/y.LRV")
    with pytest.raises(DataError, match=r"has no clips in its folders a, b; passed over 2 files .*\.lrv"):
        listed(tmp_path / "proxies")


@pytest.mark.parametrize("about", ["depth", "flow", "Masks", "depth_map", "optical_flow", "thermal"])
def test_folders_of_pictures_about_frames_are_no_clips_beside_these(tmp_path, about):
    clips = [f"{name}/{n}" for name in ("run", "jump") for n in range(3)]
    touch(tmp_path, *(f"{clip}/{kind}/{n}.png" for clip in clips for kind in ("rgb", about) for n in range(2)))
    assert names(tmp_path) == sorted(f"{clip}/rgb" for clip in clips)
    alone = touch(tmp_path / "alone", *(f"{clip}/{about}/{n}.png" for clip in clips for n in range(2)))
    assert names(alone) == sorted(f"{clip}/{about}" for clip in clips), "where there is nothing else, they are"
