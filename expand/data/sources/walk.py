"""Find clips in folders: the table of file and folder names, the walk, and proxies beside their originals.

A file whose suffix is in no table counts as a clip: it is decoded, and named if that fails. Names are compared in lower
case. The walk needs one `scandir` for each folder and no `stat` of a file, so that 240,000 clips are listed in a second
or two, also on a network disk.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import islice

from expand.data.sources.clip import Source, SourceClip, split_of_folder
from expand.errors import DataError, quantity

PICTURES = {
    ".jpg": "mjpeg", ".jpeg": "mjpeg", ".jpe": "mjpeg", ".jfif": "mjpeg", ".png": "png", ".bmp": "bmp", ".dib": "bmp",
    ".tif": "tiff", ".tiff": "tiff", ".webp": "webp", ".ppm": "ppm", ".pgm": "pgm", ".pbm": "pbm", ".pnm": "ppm",
    ".pam": "pam", ".tga": "targa", ".jp2": "jpeg2000", ".j2k": "jpeg2000", ".qoi": "qoi", ".sgi": "sgi"}
"""FFmpeg's decoder for each suffix of the pictures that may be the frames of a clip."""
OTHER_PICTURES = frozenset((
    ".heic", ".heif", ".hif", ".avif", ".jxl", ".jxr", ".psd", ".psb", ".xcf", ".svg", ".svgz", ".ai", ".eps", ".ico",
    ".icns", ".cur", ".exr", ".dpx", ".hdr", ".pfm", ".dds", ".ktx", ".pcx", ".3fr", ".arw", ".cr2", ".cr3", ".crw",
    ".dcr", ".dng", ".erf", ".fff", ".gpr", ".iiq", ".insp", ".kdc", ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf",
    ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f", ".dcm", ".nii", ".fits", ".flo"))
"""Pictures that are not read. EXR, HDR and DPX hold linear light, not display values as frames do."""
VIDEOS = frozenset((
    ".mp4", ".m4v", ".mov", ".qt", ".mkv", ".webm", ".avi", ".divx", ".wmv", ".asf", ".flv", ".f4v", ".mpg", ".mpeg",
    ".mpe", ".m1v", ".m2v", ".mpv", ".ts", ".mts", ".m2ts", ".m2t", ".tod", ".mod", ".vob", ".ogv", ".ogm", ".3gp",
    ".3g2", ".mxf", ".dv", ".dav", ".rm", ".rmvb", ".h264", ".264", ".h265", ".265", ".hevc", ".y4m", ".gif", ".apng",
    ".mjpg", ".mjpeg", ".insv", ".360", ".braw", ".r3d", ".nut", ".ivf", ".obu", ".av1"))
"""Suffixes of video files. Others are tried as well; these show that a hidden or unfinished file was a video."""
NO_CLIPS = {
    "proxies": (".lrv", ".lrf", ".glv"),
    "thumbnails": (".thm",),
    "a camera's records": (
        ".cpi", ".mpl", ".bdm", ".bdmv", ".mpls", ".clpi", ".ctg", ".modd", ".moff", ".moi", ".bnp", ".int", ".inp",
        ".cif", ".xmf", ".bim", ".smi", ".ppn", ".scr", ".ifo", ".bup", ".bin", ".idx", ".rmd", ".ale", ".tdt", ".tid",
        ".pmp", ".sdv", ".gcsv", ".bbl", ".gyroflow", ".gpx", ".fit", ".nmea", ".kml", ".telemetry"),
    "sidecars": (
        ".xmp", ".aae", ".nfo", ".mtl", ".cos", ".cop", ".cot", ".dop", ".pp3", ".edl", ".fcpxml", ".prproj", ".aep",
        ".drp", ".dra", ".mlt", ".kdenlive", ".xges", ".pek", ".cfa", ".pkf", ".mpgindex", ".ims", ".lrcat", ".lrprev",
        ".lrfprev", ".lrdata", ".cube", ".annotations"),
    "subtitles": (".srt", ".ass", ".ssa", ".sub", ".vtt", ".sbv", ".lrc", ".ttml", ".dfxp", ".sup", ".sami", ".stl",
                  ".ttxt", ".srv1", ".srv2", ".srv3", ".json3", ".live_chat"),
    "sound": (".mp3", ".wav", ".wave", ".m4a", ".m4b", ".aac", ".flac", ".ogg", ".oga", ".opus", ".wma", ".aif",
              ".aiff", ".aifc", ".ac3", ".eac3", ".dts", ".amr", ".ape", ".alac", ".mka", ".mp2", ".mid", ".midi",
              ".caf", ".au", ".weba", ".spx", ".wv"),
    "unfinished downloads": (".part", ".partial", ".crdownload", ".download", ".opdownload", ".fdmdownload", ".!qb",
                             ".!ut", ".bc!", ".jc!", ".tmp", ".temp", ".aria2", ".ytdl", ".filepart", ".dtapart",
                             ".idm", ".icloud", ".st", ".incomplete", ".unfinished"),
    "check sums": (".md5", ".sha1", ".sha224", ".sha256", ".sha384", ".sha512", ".sfv", ".crc", ".crc32", ".par2",
                   ".xxh", ".xxh64", ".blake3", ".mhl", ".sig", ".asc", ".gpg"),
    "torrents and links": (".torrent", ".magnet", ".url", ".webloc", ".lnk", ".desktop", ".m3u", ".m3u8", ".pls",
                           ".xspf", ".strm", ".asx", ".wpl"),
    "texts and tables": (
        ".txt", ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".yaml", ".yml", ".xml", ".toml", ".md", ".rst", ".html",
        ".htm", ".xhtml", ".mht", ".pdf", ".doc", ".docx", ".odt", ".rtf", ".tex", ".bib", ".ppt", ".pptx", ".odp",
        ".key", ".pages", ".numbers", ".xls", ".xlsx", ".xlsm", ".ods", ".epub", ".log", ".ini", ".cfg", ".conf",
        ".plist", ".description", ".info", ".list", ".lst", ".eaf", ".elan", ".vgt", ".trs", ".cvat", ".textgrid",
        ".dtd", ".xsd", ".xsl", ".css", ".eml"),
    "data": (".npy", ".npz", ".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".safetensors", ".onnx", ".h5", ".hdf5", ".mat",
             ".parquet", ".feather", ".arrow", ".tfrecord", ".tfrecords", ".lmdb", ".mdb", ".db", ".db-wal", ".db-shm",
             ".db-journal", ".sqlite", ".sqlite3", ".bag", ".pcd", ".ply", ".obj", ".las", ".c3d", ".bvh", ".skeleton",
             ".joblib", ".msgpack", ".pb", ".rds", ".sav", ".dta", ".frames", ".index"),
    "programs": (".py", ".pyc", ".ipynb", ".sh", ".bash", ".bat", ".cmd", ".ps1", ".js", ".mjs", ".css", ".c", ".cc",
                 ".cpp", ".h", ".hpp", ".m", ".r", ".java", ".class", ".exe", ".dll", ".so", ".dylib", ".msi", ".apk",
                 ".app", ".lua", ".pl", ".rb", ".go", ".rs", ".lock", ".pid"),
    "archives": (".zip", ".zipx", ".tar", ".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".lz4", ".rar", ".7z",
                 ".cab", ".iso", ".img", ".dmg", ".z01", ".jar"),
    "back-ups": (".bak", ".old", ".orig", ".swp", ".swo", ".swn", ".sav~", ".rej", ".backup", ".bkp", ".dvc"),
}
"""Suffixes of files that are no clips, by kind."""
SYSTEM_FILES = frozenset((
    "desktop.ini", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "picasa.ini", "folder.htt", "icon\r",
    "iconcache.db", "sonydesc", "synofile_thumb", "readme", "license", "licence", "copying", "copyright", "notice",
    "authors", "changelog", "changes", "contributing", "citation", "makefile", "dockerfile", "version", "md5sum",
    "md5sums", "sha1sum", "sha1sums", "sha256sum", "sha256sums", "sha512sums", "checksum", "checksums", "manifest",
    "_success", "core", "nohup.out", "filelist", "untitled folder"))
"""Whole names of files that are no clips."""
SPOILT_NAME = re.compile(
    r"~$|^~\$|^#.*#$|\.part-frag\d+(\.part)?$|\.part\d+$|\.[rz]\d\d$|\.sync-conflict-\d{8}-\d{6}|\.(swp|swo)$"
    r"|^unconfirmed \d+\.crdownload$|^\$[ir][0-9a-z]{6}\.", re.IGNORECASE)
"""Back-ups of editors, locks of office programs, parts of downloads and archives, conflicts of synchronisation."""
SYSTEM_FOLDERS = frozenset((
    "@eadir", "@recycle", "#recycle", "@recently-snapshot", "@recentlysnapshot", "#snapshot", "~snapshot", "@snapshot",
    "@sharesnap", "@sharebin", "@tmp", "@synoresource", "@synologydrive", "@transcode", "@__thumb", "@__qini",
    "@database", "@upload_cache", "@index", "@cloudsync", "@deleted", "$recycle.bin", "recycler",
    "$recycle", "recycle bin", "recyclebin", "trashbox",
    "system volume information", "$extend", "windowsapps", "lost+found", "lost.dir", "__macosx",
    "network trash folder", "temporary items", "thevolumesettingsfolder", "desktop db", "__pycache__", "node_modules",
    "adobe premiere pro video previews", "adobe premiere pro audio previews", "adobe premiere pro captured audio",
    "adobe premiere pro auto-save", "adobe premiere pro preview files", "adobe after effects auto-save",
    "media cache", "media cache files", "peak files", "motion graphics template media", "proxymedia", "proxy media",
    "cacheclip", "optimizedmedia", "optimized media", "high quality media", "render cache", "render files",
    "analysis files", "transcoded media", "imovie cache", "imovie thumbnails", "final cut pro backups",
    "previews.lrdata", "canonmsc", "avf_info", "ad_lumix", "eos_digital", "nikon_info", "sonycard", "lrcat-data",
    "$windows.~bt", "msocache", "synologyphotobackuplogs", "catalog previews"))
"""Folders of systems, NAS and editing programs: they hold no clips of the user, wherever they lie."""
SYSTEM_FOLDER = re.compile(r"found\.\d{3}|\.?trash-\d+|.*\.lr(data|lib)|.*\.fcpcache"
                           r"|.*\.sparsebundle|@.*\.snap|snapshot@.*|gmt-\d{4}\.\d\d\.\d\d-\d\d\.\d\d\.\d\d",
                           re.IGNORECASE)
"""Patterns of further names of such folders."""
CAMERA_FOLDERS = {
    "m4root": ("clip", ("sub", "thmbnl", "general")), "xdroot": ("clip", ("sub", "thmbnl", "general", "userdata")),
    "contents": ("video", ("audio", "clip", "icon", "proxy", "voice")),
    "bdmv": ("stream", ("auxdata", "backup", "bdjo", "clipinf", "jar", "meta", "playlist")),
    "avchd": ("bdmv", ("avchdtn", "canonthm", "iismgr"))}
"""{folder of a camera: (its folder with the recordings, its folders without recordings or with proxies)}."""
PICTURE_FOLDERS = frozenset((
    "thumb", "thumbs", "thumbnail", "thumbnails", "thmbnl", "preview", "previews", "poster", "posters", "cover",
    "covers", "icon", "icons", "sprite", "sprites", "storyboard", "storyboards", "screenshot", "screenshots",
    "contact sheet", "contact sheets", "contact_sheets"))
"""Folders below a class whose pictures are no frames; a clip in one is a clip."""
FRAME_FOLDERS = frozenset((
    "rgb", "rgbs", "color", "colour", "colors", "image", "images", "img", "imgs", "frame", "frames", "rawframes",
    "raw_frames", "jpegimages", "pictures", "original"))
"""Folders of the frames of a recording, if folders beside them hold pictures derived from these."""
ABOUT_FRAMES = re.compile(
    r"(?:.*[ ._-])?(?:masks?|depths?|(?:optical[ _-]?)?flow|seg|segm|segmentations?|semantic|instances?|labels?|gt"
    r"|annotations?|normals?|disp|disparity|alpha|matte|heatmaps?|thermal|ir|infrared|pose|skeletons?|keypoints"
    r"|overlays?)(?:[ ._-](?:x|y|u|v|map|maps|images?|frames|png|vis|raw|left|right|\d+))?", re.IGNORECASE)
"""Folders of pictures derived from the frames beside them."""
PROXY_FOLDERS = frozenset(("proxy", "proxies", "lrv", "lrf", "lowres", "low_res", "low-res", "lores"))
"""Folders below a class with small copies, if the class has recordings of the same names elsewhere."""

_KIND = {suffix: kind for kind, suffixes in NO_CLIPS.items() for suffix in suffixes}


def suffix_of(name: str) -> str:
    """Return the suffix of a file's name, in lower case with its dot; "" if it has none."""
    head, dot, tail = name.rpartition(".")
    return f".{tail.lower()}" if dot and head else ""


def is_system_folder(name: str) -> bool:
    """Return true if a folder of that name belongs to a system, a NAS or a program."""
    return (name.startswith(".") or name.lower() in SYSTEM_FOLDERS or SYSTEM_FOLDER.fullmatch(name) is not None
            or name == "RECYCLED")  # of Windows on FAT, always in capitals; in lower case it may be a class of waste


def has_no_recordings(folder: str, name: str, beside: Collection[str]) -> bool:
    """Return true if the folder `name` in a camera's `folder` holds no recordings, or only small copies. `beside`: all
    folders there, in lower case."""
    main, others = CAMERA_FOLDERS.get(folder.lower(), ("", ()))
    return name.lower() in others and main in beside


def other_kind(name: str) -> str | None:
    """Return the kind of a file that is no clip or picture, such as ".srt (subtitles)"; None for clips and pictures."""
    suffix = suffix_of(name)
    if suffix in PICTURES:
        return None
    if suffix in _KIND:
        return f"{suffix} ({_KIND[suffix]})"
    if suffix in OTHER_PICTURES:
        return f"{suffix} (pictures)"
    if name.lower() in SYSTEM_FILES:
        return "a system's or set's own"
    if SPOILT_NAME.search(name):
        return "back-ups and parts"
    return None


def is_clip_file(name: str) -> bool:
    """Return true if a file of that name may be a clip: a video, or of an unknown kind."""
    return not name.startswith(".") and suffix_of(name) not in PICTURES and other_kind(name) is None


KINDS_SHOWN = 6
"""Kinds of skipped files that a note names; the others are counted."""
MOST_COUNTED = 1_000_000
"""Files in a system folder that are counted at most; a recycle bin may be larger than the data set."""


@dataclass
class PassedOver:
    """Files and folders that are no clips."""

    counts: Counter[str] = field(default_factory=Counter)
    """Number of files by kind, such as ".thm (thumbnails)" or "in @eaDir"."""
    unread: dict[str, str] = field(default_factory=dict)
    """{folder: suffix} of folders of pictures that would be clips if their format were one that is read."""

    def notes(self) -> list[str]:
        """Return a line for the log, or nothing if no file was passed over."""
        counts = +self.counts  # without kinds that count nothing
        if not counts:
            return []
        total, ranked = counts.total(), counts.most_common()
        parts = [f"{count:,} {kind}" for kind, count in ranked[:KINDS_SHOWN]]
        if rest := sum(count for _, count in ranked[KINDS_SHOWN:]):
            parts.append(f"{rest:,} others")
        what = "1 file that is no clip" if total == 1 else f"{total:,} files that are no clips"
        return [f"passed over {what}: {', '.join(parts)}"]


def folders_in(folder: str) -> list[str]:
    """Return the sorted names of the folders in `folder`, without hidden ones and those of systems and NAS."""
    return sorted(entry.name for entry in _entries(folder) if _is_dir(entry) and not is_system_folder(entry.name))


def files_in(folder: str) -> list[str]:
    """Return the sorted names of the files in `folder`, without hidden ones."""
    return sorted(entry.name for entry in _entries(folder) if not entry.name.startswith(".") and not _is_dir(entry))


def count_system_folders(folder: str, passed: PassedOver) -> None:
    """Count the files in the folders of systems and NAS that lie directly in `folder`."""
    for entry in _entries(folder):
        if not entry.name.startswith(".") and is_system_folder(entry.name) and _is_dir(entry):
            _count_all(entry, passed)


def clips_below(folder: str, passed: PassedOver | None = None) -> list[str]:
    """Return the clips at any depth below `folder`, as paths relative to it, in a fixed order.

    A clip is a file that the table does not name as something else, or a folder below `folder` that holds pictures
    of a kind that is read and no clip file at any depth. Pictures beside clip files are thumbnails, and so is a folder
    of pictures that is named like a clip file beside it. A folder `depth` or the like beside `rgb` is no clip either.
    `passed` counts the files that are no clips. Raises `DataError` for a folder that cannot be read.
    """
    files, frames = _walk(folder, "", passed if passed is not None else PassedOver())
    return sorted(files + frames, key=lambda path: path.replace("/", "\0"))  # as paths are ordered: part by part


def _walk(folder: str, prefix: str, passed: PassedOver, left: tuple[str, ...] = ()) -> tuple[list[str], list[str]]:
    """Clip files and folders of frames below `folder`, each with `prefix` before it; `left`: the folders that links
    were followed out of on the way here."""
    files: list[str] = []
    frames: list[str] = []
    below: list[os.DirEntry[str]] = []
    pictures, unread = 0, Counter[str]()
    for entry in _entries(folder):
        name, suffix = entry.name, suffix_of(entry.name)
        if _is_dir(entry):
            below.append(entry)
        elif name.startswith("."):
            passed.counts["hidden files"] += suffix in VIDEOS or suffix == ".icloud"
        elif suffix in PICTURES:
            pictures += 1
        elif kind := other_kind(name):
            passed.counts[kind] += 1
            unread[suffix] += suffix in OTHER_PICTURES
        else:
            files.append(prefix + name)
    stems = {os.path.splitext(path[len(prefix):])[0] for path in files}
    beside = {entry.name.lower() for entry in below}
    has_frames = bool(beside & FRAME_FOLDERS)
    for entry in below:
        if entry.name.startswith("."):
            continue
        if is_system_folder(entry.name) or has_no_recordings(os.path.basename(folder), entry.name, beside):
            _count_all(entry, passed)
            continue
        way = (*left, os.path.realpath(folder)) if entry.is_symlink() else left
        if entry.is_symlink():
            target = os.path.realpath(entry.path).rstrip("/") + "/"
            if any(f"{parent}/".startswith(target) for parent in way):
                continue  # it leads back to a folder on the way here, and the walk would not end
        more_files, more_frames = _walk(entry.path, f"{prefix}{entry.name}/", passed, way)
        files += more_files
        if has_frames and ABOUT_FRAMES.fullmatch(entry.name):
            passed.counts["folders of pictures about frames"] += len(more_frames)
        elif entry.name.lower() not in PICTURE_FOLDERS and entry.name not in stems:
            frames += more_frames
        else:
            passed.counts["folders of thumbnails"] += len(more_frames)
    if pictures and prefix and not files:
        return [], [prefix[:-1]]
    passed.counts["pictures beside clips"] += pictures
    if unread and prefix and not files and not frames and os.path.basename(folder).lower() not in PICTURE_FOLDERS:
        suffix, count = unread.most_common(1)[0]
        if count > 1:
            passed.unread[folder] = suffix
    return files, frames


def _count_all(entry: os.DirEntry[str], passed: PassedOver) -> None:
    """Count the files of a folder that is not searched; parts that cannot be read are ignored."""
    inside = (name for _, _, names in os.walk(entry.path) for name in names)
    if count := sum(1 for _ in islice(inside, MOST_COUNTED)):
        passed.counts[f"in {entry.name}"] += count


def _is_dir(entry: os.DirEntry[str]) -> bool:
    """True for a folder; a broken or circular link is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=folder) from error


_PROXY_WORD = r"(?:proxy|proxies|low-?_?res|lo-?_?res|lrv|preview|thm)"
_QUALITY_WORD = (rf"(?:{_PROXY_WORD}|(?:144|240|270|288|360|480|540|576|720|1080|1440|2160|4320)[pi](?:\d\d)?|[248]k"
                 r"|u?hd|fhd|sd|hq|lq|hi-?_?res|high-?_?res|full-?_?res|orig|original|source|raw|transcoded|compressed"
                 r"|x26[45]|h\.?26[45]|hevc|avc|av1|vp9|\d{3,4}x\d{3,4}|frames|rawframes)")
PROXY_NAME = re.compile(rf"[ ._-]{_PROXY_WORD}$", re.IGNORECASE)
QUALITY = re.compile(rf"(?<=.)[ ._-]{_QUALITY_WORD}(?=$|[ ._-])|(?<=.)\.f\d{{2,3}}$", re.IGNORECASE)
QUALITY_FOLDER = re.compile(rf"{_QUALITY_WORD}", re.IGNORECASE)
GOPRO = re.compile(r"G[XHSL](\d{6})", re.IGNORECASE)
SONY_PROXY = re.compile(r"(.*C\d{4})S03", re.IGNORECASE)
INSTA360 = re.compile(r"(?:PRO_)?(?:VID|LRV)_(\d{8}_\d{6})_\d\d_(\d{3,})", re.IGNORECASE)
MAYBE_QUALITY = re.compile(r"prox|res|lrv|preview|thm|\d[pi]|\dk|hd|sd|[hl]q|orig|source|raw|code|compress|26[45]|avc"
                           r"|av1|vp9|\dx\d|frames|\.f\d|g[xhsl]\d{6}|s03|vid_|hevc", re.IGNORECASE)
"""Part of every name that may say a quality; most names do not match and need no closer look."""


def recording_name(stem: str) -> str:
    """Return the part of the file name `stem` that all qualities of one recording share."""
    for camera in (GOPRO, SONY_PROXY, INSTA360):
        if match := camera.fullmatch(stem):
            return "\0".join(match.groups()) if camera is not SONY_PROXY else match.group(1)
    return QUALITY.sub("", stem) or stem


def is_proxy(stem: str) -> bool:
    """Return true if a file's name says that it is the small copy of another."""
    return (re.fullmatch(r"GL\d{6}|(PRO_)?LRV_.*", stem, re.IGNORECASE) is not None
            or SONY_PROXY.fullmatch(stem) is not None or PROXY_NAME.search(stem) is not None)


def remove_proxies(clips: Sequence[SourceClip], passed: PassedOver) -> list[SourceClip]:
    """Return `clips` without the proxies whose original is in the same class; `passed` counts these."""
    def is_suspect(key: str) -> bool:
        *folders, name = key.split("/")
        return ((MAYBE_QUALITY.search(name) is not None and is_proxy(_stem(name)))
                or any(folder.lower() in PROXY_FOLDERS for folder in folders[1:]))  # below its class

    suspects = {number for number, clip in enumerate(clips) if is_suspect(clip.key)}
    if not suspects:
        return list(clips)
    classes = {clips[number].label for number in suspects}
    originals = {(clip.label, recording_name(_stem(clip.key))) for number, clip in enumerate(clips)
                 if number not in suspects and clip.label in classes}
    gone = {number for number in suspects
            if (clips[number].label, recording_name(_stem(clips[number].key))) in originals}
    if gone:
        passed.counts["proxies beside their originals"] += len(gone)
    return [clip for number, clip in enumerate(clips) if number not in gone]


def group_qualities(source: Source) -> None:
    """Give clips that are likely one recording in several qualities a group of their own, in place.

    So they stay in one split if splits are made; if the source's own splits separate them, a note says so.
    """
    by_recording: dict[tuple[str, str], list[SourceClip]] = defaultdict(list)
    for clip in source.clips:
        folder, _, name = clip.key.rpartition("/")
        recording = recording_name(_stem(name)) if MAYBE_QUALITY.search(name) else _stem(name)
        by_recording[clip.label, f"{_plain_folder(folder)}/{recording}"].append(clip)
    separated = []
    for (_, name), clips in by_recording.items():
        if len(clips) < 2:
            continue
        train = [clip for clip in clips if clip.split == "train"]
        if len({clip.key for clip in train}) > 1 and all(clip.group is None for clip in train):
            for clip in train:
                clip.group = f"recording {name}"
        if len({clip.split for clip in clips}) > 1 and len({_without_split(clip.key) for clip in clips}) > 1:
            separated.append(clips)
    if separated:
        first, other = separated[0][0], next(clip for clip in separated[0] if clip.split != separated[0][0].split)
        source.notes.append(f"{quantity(len(separated), 'recording')} in two qualities in two splits, by their names, "
                           f"which makes accuracies too good: such as {first.key} in {first.split} and {other.key} in "
                           f"{other.split}")


@cache
def _plain_folder(folder: str) -> str:
    """`folder` without the parts that name a split or a quality."""
    return "/".join(part for part in _without_split(folder + "/").split("/")
                    if part and not QUALITY_FOLDER.fullmatch(part) and part.lower() not in PROXY_FOLDERS)


def _without_split(key: str) -> str:
    """`key` without suffix, and without the split among its first two folders.

    Equal numbers in two splits, also with other suffixes, are no sign of one recording.
    """
    folder, _, name = key.rpartition("/")
    parts = folder.split("/")
    return "/".join([part for place, part in enumerate(parts) if place > 1 or split_of_folder(part) is None]
                    + ([_stem(name)] if name else []))


def _stem(key: str) -> str:
    name = key.rpartition("/")[2]
    stem, suffix = os.path.splitext(name)
    return stem if re.fullmatch(r"\.\w{1,8}", suffix) and not suffix[1:].isdecimal() else name
