"""The format of a file of decoded frames.

It holds the frames one after the other (T x H x W x 3 bytes), then their description (deflated JSON), then the length
of the description and a magic word. A file is complete if its length is the one that its end gives, so nothing else has
to be read to check it. A file with the description alone stands for a clip whose frames are decoded at each access.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

FORMAT = 3
"""Changes with the format and with how frames are decoded; part of every name, so that no old file is used. 3: frames
are mirrored and stretched as the clip says."""
MAGIC = b"x3dframe"
TRAILER = struct.Struct("<Q8s")
FRAMES, INDEX = ".frames", ".index"


def pack_description(description: dict[str, Any]) -> bytes:
    """Return the bytes that follow the frames in a file; `description` has `bytes`, the length of the frames in it."""
    text = zlib.compress(json.dumps(description | {"format": FORMAT}).encode())
    return text + TRAILER.pack(len(text), MAGIC)


def read_description(file: Path) -> dict[str, Any] | None:
    """Return the description in `file`; None if there is none or the file is not complete."""
    try:
        with open(file, "rb", buffering=0) as opened:
            size = opened.seek(0, os.SEEK_END)
            opened.seek(size - TRAILER.size)
            length, magic = TRAILER.unpack(opened.read(TRAILER.size))
            if magic != MAGIC or length > size:
                return None
            opened.seek(size - TRAILER.size - length)
            description = json.loads(zlib.decompress(opened.read(length)))
            is_complete = description["format"] == FORMAT and description["bytes"] + length + TRAILER.size == size
            return description if is_complete else None
    except (OSError, ValueError, struct.error, zlib.error, KeyError, TypeError):
        return None


def frames_bytes(description: dict[str, Any]) -> int:
    """Return the bytes that the described frames take once decoded, whether they are in the file or not."""
    return len(description["times_s"]) * description["height"] * description["width"] * 3
