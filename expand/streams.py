"""The standard streams of this program, made safe: no output can end the work.

A stream may lead to a terminal of any encoding, to a full disk, to a reader that has gone, or nowhere. `prepare`
replaces Python's own streams by ones that take every character (with an ASCII form of those that their encoding lacks)
and every write (data that the system refuses is dropped). A command whose result is its output reports such a loss
(`OutputLost`); the others go on (`tolerate_lost_output`).
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
"""The name of the error handler that all streams use for encoding."""
PLAIN_ASCII = "x3d_expand_ascii"
"""Another name for ASCII: click regards a stream with the encoding `ascii` as misconfigured, and sends it UTF-8."""
SYMBOLS = {
    "×": "x", "±": "+/-", "…": "...", "→": "->", "←": "<-", "≤": "<=", "≥": ">=", "≈": "~", "·": ".", "•": "*",
    "–": "-", "—": "-", "−": "-", "‘": "'", "’": "'", "“": '"', "”": '"', "\u00a0": " ", "⁹": "^9", "²": "^2",
}
GREEK_WORD = 3
"""Number of Greek letters in a row from which they are a word and no symbols."""


class OutputLost(ExpandError):
    """Standard output cannot be written to. `reader_has_gone`: it was a pipe whose reader has ended."""

    def __init__(self, error: OSError) -> None:
        self.reader_has_gone = error.errno == errno.EPIPE
        super().__init__(f"cannot be written: {error.strerror or error}", where="standard output",
                         fix="send it to a file or a terminal that takes it")


def fit_to_encoding(text: str, encoding: str) -> str:
    """Return `text` as a stream of `encoding` shows it, with ASCII forms of missing characters. For text in columns."""
    return text.encode(encoding, ASCII_FORMS).decode(encoding)


def is_unicode(encoding: str) -> bool:
    """Return True if `encoding` has every character."""
    return codecs.lookup(encoding).name.startswith("utf")


def output_encoding() -> str:
    """Return the encoding of standard output."""
    return getattr(sys.stdout, "encoding", None) or "utf-8"


def _replace_by_ascii(error: UnicodeError) -> tuple[str, int]:
    """Return the replacement for characters that the encoding lacks, by Python's protocol of an error handler."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text, following = error.object[error.start:error.end], error.object[error.end:error.end + 1]
    names = [unicodedata.name(letter, "") for letter in text]
    greek = [found for name in names if (found := re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER ([A-Z]+)", name))]
    if len(text) < GREEK_WORD and len(greek) == len(text):  # γd is gamma_d, as in the files of a network
        words = [found[2].lower() if found[1] == "SMALL" else found[2].capitalize() for found in greek]
        return "_".join(words) + ("_" if following.isalpha() else ""), error.end
    forms = []
    for letter, name in zip(text, names, strict=True):
        if letter in SYMBOLS:
            forms.append(SYMBOLS[letter])
        elif name.startswith("BOX DRAWINGS"):  # a single character, as for blocks, so that columns stay aligned
            across, down = ("HORIZONTAL" in name or "LEFT" in name or "RIGHT" in name,
                            "VERTICAL" in name or "UP" in name or "DOWN" in name)
            forms.append("+" if across and down else "-" if across else "|")
        elif name.endswith("BLOCK"):
            forms.append("#")
        else:
            forms.append(letter.encode("ascii", "backslashreplace").decode())
    return "".join(forms), error.end


def _find_plain_ascii(name: str) -> codecs.CodecInfo | None:
    if name != PLAIN_ASCII:
        return None
    found = codecs.lookup("ascii")
    return codecs.CodecInfo(found.encode, found.decode, found.streamreader, found.streamwriter,
                            found.incrementalencoder, found.incrementaldecoder, name=PLAIN_ASCII)


codecs.register_error(ASCII_FORMS, _replace_by_ascii)
codecs.register(_find_plain_ascii)


class _Outlet(io.RawIOBase):
    """The raw end of a stream, at the file handle `number`, which takes every write.

    Data that the system refuses is dropped, and so are all later data; `on_refusal` is then called once, and may raise.
    """

    def __init__(self, number: int, is_open: bool, on_refusal: Callable[[OSError], None]) -> None:
        super().__init__()
        self._number, self._on_refusal = number, on_refusal
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
                if self._closed_error:
                    raise self._closed_error
                while True:
                    try:
                        return os.write(self._number, data)
                    except BlockingIOError:  # a program with the same terminal or pipe made it so
                        select.select([], [self._number], [])
            except OSError as error:
                self.error = error
                self._on_refusal(error)
        return len(data)


_output: _Outlet | None = None
_is_output_needed = True


def tolerate_lost_output() -> None:
    """From now on, only warn on standard error if standard output cannot be written to."""
    global _is_output_needed
    _is_output_needed = False


def require_output() -> None:
    """From now on, raise `OutputLost` if standard output cannot be written to, here or later."""
    global _is_output_needed
    _is_output_needed = True
    if _output and _output.error:
        raise OutputLost(_output.error)


def _report_lost_output(error: OSError) -> None:
    if _is_output_needed:
        raise OutputLost(error)
    if os.environ.get("RANK", "0") == "0":  # of torchrun's processes, the first
        print(f"Warning: standard output cannot be written ({error.strerror or error}); the work goes on without it",
              file=sys.stderr, flush=True)


def prepare() -> None:
    """Replace Python's own streams by safe ones, unless that was done or a caller has put other streams there.

    File handles 0 to 2 that are closed are opened on /dev/null: else the next file that is opened, a run's journal for
    instance, would get the number, and with it everything that libraries print.
    """
    global _output, _is_output_needed
    _is_output_needed = True
    is_open = [stream is not None for stream in (sys.stdin, sys.stdout, sys.stderr)]
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 - for as long as the program runs
    if _is_pythons_own(sys.stderr, 2):
        sys.stderr, _ = _safe_stream(sys.stderr, 2, is_open[2], lambda error: None)
    if _is_pythons_own(sys.stdout, 1):
        sys.stdout, _output = _safe_stream(sys.stdout, 1, is_open[1], _report_lost_output)
    if not re.fullmatch("[1-9][0-9]{0,3}", os.environ.get("COLUMNS", "80")):  # rich would take any number, even 0
        del os.environ["COLUMNS"]


def _is_pythons_own(stream: Any, number: int) -> bool:
    """Return True if Python itself made `stream` for the handle `number`, and not a test or a caller."""
    if stream is None:
        return True
    if not isinstance(stream, io.TextIOWrapper) or isinstance(getattr(stream.buffer, "raw", None), _Outlet):
        return False
    try:
        return stream.fileno() == number
    except (OSError, ValueError):
        return False


def _safe_stream(stream: Any, number: int, is_open: bool,
                 on_refusal: Callable[[OSError], None]) -> tuple[io.TextIOWrapper, _Outlet]:
    outlet = _Outlet(number, is_open, on_refusal)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    if codecs.lookup(encoding).name == "ascii":
        encoding = PLAIN_ASCII
    safe = io.TextIOWrapper(io.BufferedWriter(outlet), encoding=encoding, errors=ASCII_FORMS,
                            line_buffering=getattr(stream, "line_buffering", number == 2),
                            write_through=getattr(stream, "write_through", False))
    return safe, outlet


def read_names_as_utf8() -> None:
    """Restart this program in Python's UTF-8 mode if the locale has another encoding.

    Python decodes file names, arguments and the environment by the locale, and that cannot be changed later. Without
    UTF-8 the names of classes and clips would differ from those in a run's files, so that the run could not be resumed,
    and most clips could not be opened at all. The streams keep the locale's encoding.
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
