"""The table of file and folder names: clips, pictures of a clip, or neither.

A file whose suffix is in no table counts as a clip: it is decoded, and named if that fails. Names are compared in lower
case.
"""

from __future__ import annotations

import re
from collections.abc import Collection

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
