"""The user's home folder and the caches in it, and a substitute where there is none.

In a container that runs under an arbitrary user number, HOME may be missing, read-only or nonsense, and the system may
not know the user. Every `~` in a path goes through `expand_home`.
"""

from __future__ import annotations

import os
import pwd
import stat
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

from expand.errors import UsageError

PROJECT = "x3d-expand"
CACHE = "XDG_CACHE_HOME"
_LIBRARIES = {"MPLCONFIGDIR": "matplotlib", "TRITON_HOME": "triton"}
"""Environment variables of libraries that ignore `XDG_CACHE_HOME` and look for a home, each with a folder name."""


@dataclass
class _Substitute:
    """The folder that replaces the home folder in this process, and the reason."""

    folder: Path
    reason: str
    is_reported: bool = False


_substitute: _Substitute | None = None


def expand_home(path: str | Path, option: str) -> Path:
    """Return `path` with a leading `~` or `~user` replaced by that home folder.

    If there is no such home but a file or folder with that very name, the path is taken literally. `option` names it in
    the error. Raises `UsageError` if the home folder is unknown.
    """
    text = os.fspath(path)
    first, _, rest = text.partition("/")
    if not first.startswith("~"):
        return Path(text)
    home = _home_of(first[1:])
    if home is not None:
        return Path(home, rest.lstrip("/"))
    if os.path.lexists(text):
        return Path(os.getcwd(), text)  # from the root, so that no other reader takes the ~ for a home
    if first == "~":
        raise UsageError("there is no home folder: HOME is not set to one, and the system does not know this user",
                         where=f"{option} {text}", fix="set HOME, or write the whole path")
    raise UsageError(f"there is no user '{first[1:]}' here, so {first} is no home folder", where=f"{option} {text}",
                     fix=f"write the whole path; a folder of that name here is ./{text}")


def expand_home_if_any(path: str) -> str:
    """Return `path`, which a list or a table names, as `expand_home` does; unchanged if there is no such home."""
    try:
        return str(expand_home(path, "")) if path.startswith("~") else path
    except UsageError:
        return path


def _home_of(user: str) -> str | None:
    """Return the home folder of `user`, or of this process's user if that is empty; None if there is none."""
    if not user and os.path.isabs(home := os.environ.get("HOME", "")):
        return home
    try:
        entry = pwd.getpwnam(user) if user else pwd.getpwuid(os.getuid())
    except (KeyError, ValueError, OSError):
        return None
    return entry.pw_dir if os.path.isabs(entry.pw_dir) else None


def user_cache() -> Path:
    """Return this project's folder in the user's cache: `$XDG_CACHE_HOME/x3d-expand` or `~/.cache/x3d-expand`.

    Without a usable home it is in a temporary folder that only this user can write to, and one warning says so. Raises
    `UsageError` if there is none of these.
    """
    folder, reason = cache_place()
    if reason and _substitute and not _substitute.is_reported:
        _substitute.is_reported = True
        warnings.warn(f"{reason}; decoded frames and the like are kept in {folder}: set {CACHE} or data.cache_dir to "
                      "have them elsewhere", stacklevel=2)
    return folder


def cache_place() -> tuple[Path, str | None]:
    """Return the folder of `user_cache` without a warning, and the reason if it is in no home folder."""
    provide_caches()
    base = os.environ.get(CACHE, "")
    if os.path.isabs(base):
        reason = _substitute.reason if _substitute and base == str(_substitute.folder) else None
        return Path(base) / PROJECT, reason
    return Path(_home_of("") or "", ".cache", PROJECT), None


def provide_caches() -> None:
    """Give this process and its children a cache folder if no home folder can be used, also for libraries that would
    look for a home. Does nothing if there is a home; `XDG_CACHE_HOME` is used if it names a folder."""
    global _substitute
    reason = _home_problem()
    if reason is None:
        return
    if os.path.isabs(os.environ.get(CACHE, "")):
        folder = Path(os.environ[CACHE])
    else:
        _substitute = _Substitute(_private_folder(reason), reason)
        folder = _substitute.folder
        os.environ[CACHE] = str(folder)
    for variable, name in _LIBRARIES.items():
        os.environ.setdefault(variable, str(folder / name))


def _home_problem() -> str | None:
    """Return why nothing can be kept in this user's home folder, as a clause; None if it can."""
    home = _home_of("")
    if home is None:
        return "there is no home folder: HOME is not set to one, and the system does not know this user"
    if not os.path.isdir(home):
        return f"the home folder {home} does not exist"
    place = os.path.join(home, ".cache", PROJECT)
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    if not (os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK)):
        return f"the home folder cannot be written to ({place})"
    return None


def _private_folder(reason: str) -> Path:
    """Return a temporary folder that only this user can write to; the same one each time if it belongs to this user."""
    uid = os.geteuid()
    try:
        folder = os.path.join(tempfile.gettempdir(), f"{PROJECT}-{uid}")
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError:
            found = os.lstat(folder)
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid or found.st_mode & 0o022:
                return Path(tempfile.mkdtemp(prefix=f"{PROJECT}-{uid}-"))  # others may have put something there
            os.chmod(folder, 0o700)
        return Path(folder)
    except OSError as error:
        raise UsageError(f"{reason}, and there is no folder for temporary files either: {error.strerror or error}",
                         fix=f"set {CACHE} to a folder that can be written to") from error
