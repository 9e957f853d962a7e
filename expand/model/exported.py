"""Reading weights and description from a `torch.export` archive, without running anything in it.

`torch.export.load` unpickles constants and sample inputs and compiles guards, so it is for trusted files only. The
archive itself is a zip file without compression: a JSON table of the weights, and each weight's raw bytes.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from expand.errors import UsageError
from expand.rundir.files import from_json
from expand.space.network import MAX_BYTES, Network

WEIGHTS = "data/weights/"
TABLE = f"{WEIGHTS}model_weights_config.json"
MAX_TABLE_BYTES = 50_000_000
DTYPES = {7: torch.float32, 5: torch.int64}
"""The types of a network's weights by the archive's own numbers (`ScalarType` in torch/_export/serde/schema.py)."""


def read_torch_export(path: str | Path) -> tuple[Network, dict[str, Tensor]]:
    """Return the network's description and its weights, under the names of `X3D`'s state dict, from a file that
    `expand.exports` wrote as `torch-export`. Raises `UsageError` for any other file.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            # compressed or overlapping records could take more memory than the file's size shows
            if sum(record.file_size for record in archive.infolist()) > path.stat().st_size:
                raise ValueError("grows when it is read")
            root = archive.namelist()[0].split("/")[0]
            content = from_json(_read(archive, f"{root}/extra/network.json", MAX_BYTES))
            table = from_json(_read(archive, f"{root}/{TABLE}", MAX_TABLE_BYTES))["config"]
            state = {name: _tensor(archive, f"{root}/{WEIGHTS}", entry) for name, entry in table.items()}
        if sum(weight.numel() * weight.element_size() for weight in state.values()) > path.stat().st_size:
            raise ValueError("claims more weights than it holds")
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    except Exception as error:  # a damaged or hostile archive can make its parsers fail in any way
        raise UsageError(f"is no network that x3d-expand exported, or is damaged ({type(error).__name__}: {error})",
                         where=str(path), fix="write it anew: x3d-expand export RUN --format torch-export") from error
    return Network.from_dict(content, where=str(path)), state


def _read(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    if archive.getinfo(name).file_size > most:
        raise ValueError(f"{name} is larger than {most} bytes")
    return archive.read(name)


def _tensor(archive: zipfile.ZipFile, folder: str, entry: dict[str, Any]) -> Tensor:
    """Read a weight. Memory outside its record cannot be reached: `as_strided` checks the bounds."""
    if entry["use_pickle"]:
        raise ValueError("holds a pickled weight")
    meta = entry["tensor_meta"]
    sizes, strides = ([size["as_int"] for size in meta[key]] for key in ("sizes", "strides"))
    raw = torch.frombuffer(bytearray(archive.read(folder + entry["path_name"])), dtype=DTYPES[meta["dtype"]])
    return raw.as_strided(sizes, strides, meta["storage_offset"]["as_int"])
