"""The orientation and pixel shape of decoded pictures: mirroring, quarter turns, pixels that are not square."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple, cast

import av
import numpy as np
from av.sidedata.sidedata import Type
from PIL import Image

MATRIX_BYTES = 36
"""A display matrix: nine integers of 32 bits."""
EXIF_ORIENTATION = 0x0112
MOST_ASPECT = 8
"""Pixels more than this many times as wide as high, or as high as wide, are a mistake. Real video has at most 3."""
NEARLY_SQUARE = 0.01
"""Pixels this close to square count as square, 1280:1281 for instance, which comes from a rounded size."""
SQUARE = Fraction(1)


class Orientation(NamedTuple):
    """One of the eight ways in which a picture can lie.

    A decoded picture is mirrored left to right, if `mirrored`, and then turned by `quarter_turns` times 90 degrees
    counter-clockwise, as np.rot90 counts.
    """

    mirrored: bool
    quarter_turns: int


UPRIGHT = Orientation(False, 0)
EXIF = {1: UPRIGHT, 2: Orientation(True, 0), 3: Orientation(False, 2), 4: Orientation(True, 2),
        5: Orientation(True, 1), 6: Orientation(False, 3), 7: Orientation(True, 3), 8: Orientation(False, 1)}
"""The orientation for each value of the EXIF tag; other values mean nothing."""


def orientation_of_matrix(matrix: Sequence[int]) -> Orientation:
    """Return the orientation that a display matrix asks for.

    The matrix is FFmpeg's and MP4's: nine numbers, row by row; a pixel at (x, y), y downwards, is shown at
    (x a + y c, x b + y d). Other angles are rounded to the nearest quarter turn. A matrix that maps the picture to a
    line is ignored.
    """
    a, b, c, d = (int(matrix[place]) for place in (0, 1, 3, 4))
    determinant = a * d - b * c
    if not determinant:
        return UPRIGHT
    mirrored = determinant < 0
    if mirrored:  # without the mirroring, a rotation remains
        a, b = -a, -b
    clockwise = math.degrees(math.atan2(b / math.hypot(b, d), a / math.hypot(a, c)))
    return Orientation(mirrored, round(-clockwise / 90) % 4)


def orientation_of_frame(frame: av.VideoFrame, picture: Callable[[], bytes]) -> Orientation:
    """Return the orientation that comes with a decoded frame, from its container, its stream or its EXIF.

    `picture` returns the bytes that the frame was decoded from. They are needed where the frame has EXIF: PyAV does not
    know that kind of side data and then gives none at all.
    """
    try:
        matrix = cast("Mapping[Type, Any]", frame.side_data).get(Type.DISPLAYMATRIX)
    except ValueError:
        return exif_orientation(picture) or Orientation(False, round(frame.rotation / 90) % 4)
    if matrix is None or matrix.buffer_size != MATRIX_BYTES:
        return UPRIGHT
    return orientation_of_matrix(np.frombuffer(matrix, dtype=np.int32).tolist())


def exif_orientation(picture: Callable[[], bytes]) -> Orientation | None:
    """Return the orientation in the EXIF of a picture's bytes; None if there is none that can be read."""
    try:
        with Image.open(io.BytesIO(picture())) as opened:
            return EXIF.get(opened.getexif().get(EXIF_ORIENTATION, 0))
    except Exception:  # noqa: BLE001 - the bytes are untrusted, and Pillow raises many kinds for bad ones
        return None


def turn_upright(picture_HWC: np.ndarray, orientation: Orientation) -> np.ndarray:
    """Return the picture as it is to be seen, contiguous."""
    if orientation.mirrored:
        picture_HWC = picture_HWC[:, ::-1]
    return np.ascontiguousarray(np.rot90(picture_HWC, orientation.quarter_turns))


def pixel_aspect(declared: Fraction | None) -> Fraction:
    """Return a pixel's width by height: the declared value if it is possible, else 1."""
    if not declared or declared < 0 or abs(declared - 1) <= NEARLY_SQUARE:
        return SQUARE
    return declared if Fraction(1, MOST_ASPECT) <= declared <= MOST_ASPECT else SQUARE


def shown_size(height: int, width: int, aspect: Fraction, orientation: Orientation) -> tuple[int, int]:
    """Return (height, width) of a decoded picture once its pixels are square and it is upright.

    Square pixels change the decoded width and leave the height; the picture is turned after that.
    """
    width = max(1, round(width * aspect))
    return (width, height) if orientation.quarter_turns % 2 else (height, width)
