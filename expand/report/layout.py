"""Text and tables laid out for a terminal, of whatever width and encoding."""

from __future__ import annotations

import io
from collections.abc import Iterable

from rich.box import SIMPLE_HEAD, Box
from rich.console import Console
from rich.table import Table

from expand.streams import fit_to_encoding, is_unicode

ASCII_HEAD = Box("    \n    \n -- \n    \n    \n -- \n    \n    \n", ascii=True)
"""`SIMPLE_HEAD` for streams without characters to draw with."""


class SimpleTable(Table):
    """A table with nothing but a line below its head, its columns `gap` characters apart. Of what `encoding` lacks, the
    ASCII form is put in before the columns are measured, so that they stay columns."""

    def __init__(self, gap: int, encoding: str) -> None:
        super().__init__(box=SIMPLE_HEAD if is_unicode(encoding) else ASCII_HEAD, pad_edge=False,
                         padding=(0, gap, 0, 0), show_edge=False)
        self._encoding = encoding

    def add_texts(self, *cells: str) -> None:
        """Add a row of texts."""
        self.add_row(*(fit_to_encoding(cell, self._encoding) for cell in cells))


def lay_out(parts: Iterable[str | Table], width: int, encoding: str, *, wrap: bool = True) -> str:
    """All `parts`, one below the other, as plain text for a stream of `encoding`; ends with a line end. Tables take
    `width` characters at most, and so does text where it may `wrap`."""
    buffer = io.StringIO()
    console = Console(file=buffer, width=width, color_system=None, force_terminal=False, markup=False, emoji=False,
                      highlight=False, legacy_windows=False)
    for part in parts:
        if isinstance(part, str):
            console.print(fit_to_encoding(part, encoding), soft_wrap=not wrap)
        else:
            console.print(part)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"
