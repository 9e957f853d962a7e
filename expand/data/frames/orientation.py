"""How decoded pictures become what a viewer shows: mirrored, turned by quarters, with pixels that are not square."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type
from PIL import Image

MATRIX_BYTES = 36
"""A display matrix: nine integers of 32 bits."""
EXIF_ORIENTATION = 0x0112
MOST_ASPECT = 8
"""Pixels more than this many times as wide as high, or as high as wide, are a mistake. Real video has up to 3."""
NEARLY_SQUARE = 0.01
"""Pixels this close to square are taken as square: what is left after a size was rounded, 1280:1281 for instance."""
SQUARE = Fraction(1)


class Orientation(NamedTuple):
    """A decoded picture is mirrored left to right, if `mirrored`, and then turned by `quarter_turns` times 90 degrees
    counter-clockwise, as np.rot90 counts. These are all eight ways in which a picture can lie."""

    mirrored: bool
    quarter_turns: int


UPRIGHT = Orientation(False, 0)
EXIF = {1: UPRIGHT, 2: Orientation(True, 0), 3: Orientation(False, 2), 4: Orientation(True, 2),
        5: Orientation(True, 1), 6: Orientation(False, 3), 7: Orientation(True, 3), 8: Orientation(False, 1)}
"""By the value of the EXIF tag; others mean nothing."""


def orientation_of_matrix(matrix: Sequence[int]) -> Orientation:
    """The orientation that a display matrix asks for (FFmpeg's and MP4's: nine numbers, row by row; a pixel at (x, y),
    y downwards, is shown at (x a + y c, x b + y d)). Angles between two quarters go to the nearer one; a matrix that
    maps the picture to a line asks for nothing."""
    a, b, c, d = (int(matrix[place]) for place in (0, 1, 3, 4))
    determinant = a * d - b * c
    if not determinant:
        return UPRIGHT
    mirrored = determinant < 0
    if mirrored:  # what is left once the mirroring is taken off is a rotation
        a, b = -a, -b
    clockwise = math.degrees(math.atan2(b / math.hypot(b, d), a / math.hypot(a, c)))
    return Orientation(mirrored, round(-clockwise / 90) % 4)


def orientation_of_frame(frame: av.VideoFrame, picture: Callable[[], bytes]) -> Orientation:
    """The orientation that comes with a decoded frame, from its container, its stream or its EXIF.

    `picture` gives the bytes that it was decoded from: PyAV cannot name EXIF among a frame's side data and then gives
    none of it.
    """
    try:
        matrix = frame.side_data.get(Type.DISPLAYMATRIX)
    except ValueError:
        return exif_orientation(picture) or Orientation(False, round(frame.rotation / 90) % 4)
    if matrix is None or matrix.buffer_size != MATRIX_BYTES:
        return UPRIGHT
    return orientation_of_matrix(np.frombuffer(matrix, dtype=np.int32).tolist())


def exif_orientation(picture: Callable[[], bytes]) -> Orientation | None:
    """The orientation in the EXIF of the bytes of a picture; None where it has none that can be read."""
    try:
        with Image.open(io.BytesIO(picture())) as opened:
            return EXIF.get(opened.getexif().get(EXIF_ORIENTATION))
    except Exception:  # noqa: BLE001 - the bytes are untrusted, and Pillow raises many kinds for bad ones
        return None


def turn_upright(picture_HWC: np.ndarray, orientation: Orientation) -> np.ndarray:
    """The picture as it is to be seen, contiguous."""
    if orientation.mirrored:
        picture_HWC = picture_HWC[:, ::-1]
    return np.ascontiguousarray(np.rot90(picture_HWC, orientation.quarter_turns))


def pixel_aspect(declared: Fraction | None) -> Fraction:
    """Width by height of a pixel: what is declared, if that can be; else 1."""
    if not declared or declared < 0 or abs(declared - 1) <= NEARLY_SQUARE:
        return SQUARE
    return declared if Fraction(1, MOST_ASPECT) <= declared <= MOST_ASPECT else SQUARE


def shown_size(height: int, width: int, aspect: Fraction, orientation: Orientation) -> tuple[int, int]:
    """(height, width) of a decoded picture once it is upright and its pixels are square: the decoded width changes, its
    height stays, and only then the picture is turned."""
    width = max(1, round(width * aspect))
    return (width, height) if orientation.quarter_turns % 2 else (height, width)
