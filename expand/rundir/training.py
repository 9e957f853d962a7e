"""What a training that belongs to no search was begun with, and what a final training of either kind left."""

from __future__ import annotations

from typing import Any

from expand.config import yaml_document
from expand.errors import RunError
from expand.field_checks import Check, Wrong, list_of, number, one_of, or_null, record, text, whole
from expand.rundir.paths import RunPaths


def _network(value: Any, name: str) -> None:
    """`Network.from_dict` looks at it."""


BEGINNING: Check = record({
    "network": _network, "config": text(yaml_document.MAX_BYTES), "fingerprint": text(1000), "init": or_null(text()),
    "splits": record({}, {split: whole(0, 10**9) for split in ("train", "val", "test")})})
_accuracy, _loss, _seconds = number(0, 1), number(-1e30, 1e30), number(0, 1e12)
_matrix = list_of(list_of(whole(0, 10**9), 10**6), 10**6, least=1)
_ended = record({
    "result": record({"split": one_of(("val", "test")), "accuracy": _accuracy, "stderr": or_null(_accuracy),
                      "top5": _accuracy, "val_accuracy": _accuracy, "val_stderr": or_null(_accuracy)},
                     {"loss": or_null(_loss), "wall_s": or_null(_seconds)}),
    "confusion": record({"val": _matrix}, {"test": _matrix})})


def check_outcome(value: Any, name: str) -> None:
    """Looks at what is used of a final training's outcome.json."""
    _ended(value, name)
    split = value["result"]["split"]
    if not sum(map(sum, value["confusion"].get(split, []))):
        raise Wrong(f"'confusion.{split}' has no videos")


NAMES = ("network", "config", "fingerprint", "splits", "init")


def read_training(paths: RunPaths) -> dict[str, Any]:
    """The fields `NAMES` of training.yaml. Raises `RunError` where it is not as it was written."""
    try:
        spec = yaml_document.parse_values(yaml_document.read_regular_file(paths.training))
        BEGINNING(spec, "")
    except (yaml_document.NotYaml, Wrong) as error:
        raise RunError(f"cannot be used ({error}), so nobody can tell what was to be trained",
                       where=str(paths.training), fix="take it back from a copy, or start a new training") from error
    return {name: spec[name] for name in NAMES}
