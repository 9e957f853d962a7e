"""The standard streams of this program: nothing that is shown may end what is done.

A stream may lead to a terminal of any encoding, to a full disk, to a reader that has gone, or nowhere. `prepare` puts
streams in the places of Python's own that take every character, with an ASCII form of those that their encoding lacks,
and that take every write: what the system refuses is dropped. A command whose result is what it prints says so in the
end (`OutputLost`); the others work on (`go_on_without_output`).
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import re
import select
import sys
import unicodedata
from collections.abc import Callable
from typing import Any

from expand.errors import ExpandError

ASCII_FORMS = "x3d_expand.ascii_forms"
"""The name of the error handler with which every stream encodes."""
PLAIN_ASCII = "x3d_expand_ascii"
"""ASCII by another name: click takes a stream that calls itself `ascii` for misconfigured, and sends it UTF-8."""
SYMBOLS = {
    "×": "x", "±": "+/-", "…": "...", "→": "->", "←": "<-", "≤": "<=", "≥": ">=", "≈": "~", "·": ".", "•": "*",
    "–": "-", "—": "-", "−": "-", "‘": "'", "’": "'", "“": '"', "”": '"', "\u00a0": " ", "⁹": "^9", "²": "^2",
}
GREEK_WORD = 3
"""Greek letters in a row that are no symbol, but a word."""


class OutputLost(ExpandError):
    """Standard output cannot be written to. `reader_has_gone`: it was a pipe that is read no more."""

    def __init__(self, error: OSError) -> None:
        self.reader_has_gone = error.errno == errno.EPIPE
        super().__init__(f"cannot be written: {error.strerror or error}", where="standard output",
                         fix="send it to a file or a terminal that takes it")


def fitted(text: str, encoding: str) -> str:
    """`text` as a stream of `encoding` shows it: what it lacks has its ASCII form. For text that is laid out."""
    return text.encode(encoding, ASCII_FORMS).decode(encoding)


def is_unicode(encoding: str) -> bool:
    """Whether `encoding` has every character."""
    return codecs.lookup(encoding).name.startswith("utf")


def output_encoding() -> str:
    """That of standard output."""
    return getattr(sys.stdout, "encoding", None) or "utf-8"


def _with_ascii_forms(error: UnicodeError) -> tuple[str, int]:
    """Python's protocol of an error handler: what takes the place of the characters that the encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return _ascii_form(error.object[error.start:error.end], error.object[error.end:error.end + 1]), error.end


def _ascii_form(text: str, following: str) -> str:
    names = [_greek_name(letter) for letter in text]
    if len(names) < GREEK_WORD and all(names):  # γd is gamma_d, as in the files of a network
        return "_".join(names) + ("_" if following.isalpha() else "")
    return "".join(SYMBOLS.get(letter) or _line_form(letter) or letter.encode("ascii", "backslashreplace").decode()
                   for letter in text)


def _greek_name(letter: str) -> str | None:
    found = re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER ([A-Z]+)", unicodedata.name(letter, ""))
    return found and (found[2].lower() if found[1] == "SMALL" else found[2].capitalize())


def _line_form(letter: str) -> str | None:
    """Of the characters that tables and bars are drawn with: always one, so that columns stay columns."""
    name = unicodedata.name(letter, "")
    if name.startswith("BOX DRAWINGS"):
        across, down = ("HORIZONTAL" in name or "LEFT" in name or "RIGHT" in name,
                        "VERTICAL" in name or "UP" in name or "DOWN" in name)
        return "+" if across and down else "-" if across else "|"
    return "#" if name.endswith("BLOCK") else None


def _find_plain_ascii(name: str) -> codecs.CodecInfo | None:
    if name != PLAIN_ASCII:
        return None
    found = codecs.lookup("ascii")
    return codecs.CodecInfo(found.encode, found.decode, found.streamreader, found.streamwriter,
                            found.incrementalencoder, found.incrementaldecoder, name=PLAIN_ASCII)


codecs.register_error(ASCII_FORMS, _with_ascii_forms)
codecs.register(_find_plain_ascii)


class _Outlet(io.RawIOBase):
    """The raw end of a stream, at the file handle `number`, which takes every write. What is refused is dropped, and
    so is everything after it; `refused` is then called once, and may raise."""

    def __init__(self, number: int, is_open: bool, refused: Callable[[OSError], None]) -> None:
        super().__init__()
        self._number, self._refused = number, refused
        self._closed_error = None if is_open else OSError(errno.EBADF, "it is closed")
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                return self._written(data)
            except OSError as error:
                self.error = error
                self._refused(error)
        return len(data)

    def _written(self, data: Any) -> int:
        if self._closed_error:
            raise self._closed_error
        while True:
            try:
                return os.write(self._number, data)
            except BlockingIOError:  # a program with the same terminal or pipe made it so
                select.select([], [self._number], [])


_output: _Outlet | None = None
_is_output_needed = True


def go_on_without_output() -> None:
    """From now on, standard output that cannot be written to is said on standard error, and no more."""
    global _is_output_needed
    _is_output_needed = False


def need_output() -> None:
    """From now on, standard output that cannot be written to ends the command: raises `OutputLost`, here or later."""
    global _is_output_needed
    _is_output_needed = True
    if _output and _output.error:
        raise OutputLost(_output.error)


def _output_refused(error: OSError) -> None:
    if _is_output_needed:
        raise OutputLost(error)
    if os.environ.get("RANK", "0") == "0":  # of torchrun's processes, the first
        print(f"Warning: standard output cannot be written ({error.strerror or error}); the work goes on without it",
              file=sys.stderr, flush=True)


def prepare() -> None:
    """Puts safe streams in the places of Python's own, where that was not done yet and they are the system's.

    File handles 0 to 2 that are closed are opened on nothing: else the next file that is opened, a run's journal for
    instance, would get the number, and with it what libraries print.
    """
    global _output, _is_output_needed
    _is_output_needed = True
    is_open = [stream is not None for stream in (sys.stdin, sys.stdout, sys.stderr)]
    _open_missing_handles()
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 - for as long as the program runs
    if _is_the_systems(sys.stderr, 2):
        sys.stderr, _ = _safe_stream(sys.stderr, 2, is_open[2], lambda error: None)
    if _is_the_systems(sys.stdout, 1):
        sys.stdout, _output = _safe_stream(sys.stdout, 1, is_open[1], _output_refused)
    if not re.fullmatch("[1-9][0-9]{0,3}", os.environ.get("COLUMNS", "80")):  # rich would take any number, even 0
        del os.environ["COLUMNS"]


def _open_missing_handles() -> None:
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)


def _is_the_systems(stream: Any, number: int) -> bool:
    """Whether `stream` is what Python made of the handle `number`, and not what a test or a caller put there."""
    if stream is None:
        return True
    if not isinstance(stream, io.TextIOWrapper) or isinstance(getattr(stream.buffer, "raw", None), _Outlet):
        return False
    try:
        return stream.fileno() == number
    except (OSError, ValueError):
        return False


def _safe_stream(stream: Any, number: int, is_open: bool,
                 refused: Callable[[OSError], None]) -> tuple[io.TextIOWrapper, _Outlet]:
    outlet = _Outlet(number, is_open, refused)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    if codecs.lookup(encoding).name == "ascii":
        encoding = PLAIN_ASCII
    safe = io.TextIOWrapper(io.BufferedWriter(outlet), encoding=encoding, errors=ASCII_FORMS,
                            line_buffering=getattr(stream, "line_buffering", number == 2),
                            write_through=getattr(stream, "write_through", False))
    return safe, outlet


def read_names_as_utf8() -> None:
    """Begins this program anew in Python's UTF-8 mode where the locale has another encoding; else it returns.

    Python decodes file names, arguments and the environment by the locale, and that cannot be changed later. Under a
    locale without UTF-8 the names of classes and clips would be others than in a run's files, so that it could not be
    resumed, and most could not be opened at all. The streams keep the locale's encoding.
    """
    if sys.getfilesystemencoding() == "utf-8" or sys.flags.ignore_environment or not sys.executable or \
            os.environ.get("PYTHONUTF8") == "1":
        return
    if not os.environ.get("PYTHONIOENCODING", "").partition(":")[0]:
        streams = (sys.stdout, sys.stderr, sys.stdin)
        os.environ["PYTHONIOENCODING"] = next((stream.encoding for stream in streams if stream), "utf-8")
    os.environ["PYTHONUTF8"] = "1"
    with contextlib.suppress(OSError):
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
