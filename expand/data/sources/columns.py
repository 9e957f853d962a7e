"""The usual names of the columns of a list, and the values that mean a split."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

from expand.data.sources.clip import SPLIT_NAMES

PATHS = ("path", "video_path", "clip_path", "file_path", "full_path", "relative_path", "rel_path", "absolute_path",
         "abs_path", "local_path", "file", "file_name", "fname",
         "video_file", "clip_file", "video_file_name", "clip_file_name",
         "video", "clip", "video_name", "clip_name", "movie", "image", "frame_dir", "frames", "directory", "dir",
         "folder", "paths", "files", "file_names", "videos", "clips")
"""Columns that name a clip's file, the surest first. The names in this module are compared without regard to case,
blanks, hyphens and underscores: `file_name` is also `filename`, `File Name` and `fileName`."""
IDS = ("name", "video_id", "clip_id", "youtube_id", "yt_id", "vid", "vid_id", "id", "uid", "key", "uri", "url", "link",
       "video_url")
"""Columns that name a clip in another way, often without a suffix; its file is looked for by that name."""
LABELS = ("label_name", "class_name", "label", "class", "category_name", "action_name", "activity_name", "tag_name",
          "target_name", "category", "action", "activity", "tag", "target", "gesture", "sign", "gloss", "emotion",
          "event", "label_text", "class_label", "action_label", "ground_truth_label", "gt_label", "true_label",
          "labels", "classes", "categories", "tags", "targets",
          "template", "annotation", "ground_truth", "gt", "choice", "choices", "klass", "cls", "verb", "behavior",
          "behaviour", "exercise", "sport", "movement", "motion", "scene", "sentiment")
LABEL_NUMBERS = ("label_id", "class_id", "category_id", "action_id", "activity_id", "target_id", "tag_id", "label_idx",
                 "class_idx", "category_idx", "label_index", "class_index", "label_number", "class_number", "label_num",
                 "class_num", "label_encoded", "y")
"""Columns with the number of a class; a column with its name goes before them."""
SPLITS = ("split", "subset", "set", "partition", "usage", "phase", "data_split", "split_name", "train_test",
          "train_val_test", "train_val")
"""Columns with a clip's split; any other value in them is a mistake."""
MAYBE_SPLITS = ("fold", "type", "mode", "stage", "dataset")
"""Columns with a clip's split if all their values are splits."""
FLAGS = {"train": ("is_train", "is_training", "train", "training"),
         "val": ("is_val", "is_valid", "is_validation", "val", "valid", "validation"), "test": ("is_test", "test")}
"""Columns of yes and no."""
SPLIT_VALUES = {**SPLIT_NAMES, "tr": "train", "trn": "train", "dev": "val", "development": "val", "eval": "val",
                "evaluation": "val", "publictest": "val", "privatetest": "test", "te": "test", "tst": "test"}
YES, NO = {"1", "1.0", "true", "yes", "t", "y", "x"}, {"0", "0.0", "false", "no", "f", "n", ""}
PATH_LIKE = re.compile(r"(?:video|clip|file|movie|media|mp4|avi|rgb|image|img|frames?|relative|rel|absolute|abs|local|"
                       r"full|input|source|src|my|data)+(?:path|file|filename|filepath|dir|directory|folder|"
                       r"location)s?")
LABEL_LIKE = re.compile(r"(?:video|clip|action|activity|gesture|sign|event|emotion|target|true|gt|groundtruth|class|"
                        r"label|category|coarse|fine)+(?:label|class|category|tag|name|text)s?")
SPLIT_LIKE = re.compile(r".+(?:subset|split|partition)")


@dataclass(frozen=True)
class Columns:
    """The places of a list's columns; None for columns that it lacks."""

    path: int | None
    label: int | None
    split: int | None = None
    maybe_split: int | None = None
    """A column that may be the split, if all its values are."""
    flags: dict[str, int] = field(default_factory=dict)
    group: int | None = None
    number: int | None = None
    """The class's place among the classes."""
    by_id: bool = False
    """True if the path column is one of `IDS`."""


def normalise(name: str) -> str:
    """Return `name` in the form in which names of columns are compared."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold())


def find_columns(header: Sequence[str]) -> Columns:
    """Return the places of the columns of a list that begins with `header`."""
    names = [normalise(name) for name in header]

    def first(known: Sequence[str], pattern: re.Pattern[str] | None = None, taken: int | None = None) -> int | None:
        wanted = [normalise(name) for name in known]
        found = next((names.index(name) for name in wanted if name in names and names.index(name) != taken), None)
        if found is None and pattern:
            fitting = (place for place, name in enumerate(names) if place != taken and pattern.fullmatch(name))
            found = next(fitting, None)
        return found

    path = first(PATHS, PATH_LIKE)
    by_id = path is None
    path = first(IDS) if by_id else path
    label = first((*LABELS, *LABEL_NUMBERS), LABEL_LIKE, path)
    flags = {split: place for split, known in FLAGS.items() if (place := first(known)) is not None}
    return Columns(path, label, first(SPLITS, SPLIT_LIKE), first(MAYBE_SPLITS), flags, first(("group",)),
                   first(("number",)), by_id and path is not None)


def is_column_name(name: str) -> bool:
    """Return true if `name` is a usual name of a column with clips or classes."""
    found = find_columns([name])
    return found.path is not None or found.label is not None


def split_of_value(text: str) -> str | None:
    """Return the split that the value `text` of a column means; None if it is no name of a split."""
    return SPLIT_VALUES.get(normalise(text))


def split_of_flags(values: dict[str, str]) -> str | None:
    """Return the split by the yes or no of columns, {split: value}; None if they do not tell."""
    answers = {}
    for split, value in values.items():
        text = value.strip().casefold()
        if text not in YES and text not in NO:
            return None
        answers[split] = text in YES
    said = [split for split, answer in answers.items() if answer]
    if len(said) == 1:
        return said[0]
    if said:
        return None
    left = [split for split in ("train", "val", "test") if split not in answers]
    return left[0] if left else None
