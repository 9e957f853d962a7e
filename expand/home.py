"""The user's home folder and what is kept in it, also where there is none: in a container that runs under any number of
a user, HOME may be missing, not to be written to, or nonsense, and the system may not know the user.

Every `~` in a path goes through `expanded`.
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
"""Variables of the libraries that look for a home folder and not for `XDG_CACHE_HOME`, each with a folder's name."""


@dataclass
class _Stopgap:
    """The folder that took the home's place in this process, and why."""

    folder: Path
    reason: str
    is_told: bool = False


_stopgap: _Stopgap | None = None


def expanded(path: str | Path, option: str) -> Path:
    """`path` with a leading `~` or `~user` replaced by that home folder; taken as it stands where there is no such home
    but a file or folder of that very name. `option` names it in the error.

    Raises `UsageError` where the home folder cannot be told.
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


def expanded_entry(path: str) -> str:
    """`path` as a list or a table names it: as `expanded`, but one without such a home stays as it stands."""
    try:
        return str(expanded(path, "")) if path.startswith("~") else path
    except UsageError:
        return path


def _home_of(user: str) -> str | None:
    """The home folder of `user`, of this process's where that is empty; None where there is none."""
    if not user and os.path.isabs(home := os.environ.get("HOME", "")):
        return home
    try:
        entry = pwd.getpwnam(user) if user else pwd.getpwuid(os.getuid())
    except (KeyError, ValueError, OSError):
        return None
    return entry.pw_dir if os.path.isabs(entry.pw_dir) else None


def user_cache() -> Path:
    """The folder of this project in the user's cache: `$XDG_CACHE_HOME/x3d-expand` or `~/.cache/x3d-expand`.

    Where there is no home that can be used, it is in a folder of this user's alone among the temporary ones, and a
    warning says so once. Raises `UsageError` where there is none of these.
    """
    folder, reason = cache_place()
    if reason and _stopgap and not _stopgap.is_told:
        _stopgap.is_told = True
        warnings.warn(f"{reason}; decoded frames and the like are kept in {folder}: set {CACHE} or data.cache_dir to "
                      "have them elsewhere", stacklevel=2)
    return folder


def cache_place() -> tuple[Path, str | None]:
    """`user_cache`, without a word, and why it is in no home folder, where that is so."""
    provide_caches()
    base = os.environ.get(CACHE, "")
    if os.path.isabs(base):
        reason = _stopgap.reason if _stopgap and base == str(_stopgap.folder) else None
        return Path(base) / PROJECT, reason
    return Path(_home_of(""), ".cache", PROJECT), None


def provide_caches() -> None:
    """Where no home folder can be used, gives this process and its children a folder for what they keep, and tells the
    libraries that would look for a home. Nothing where there is a home, or `XDG_CACHE_HOME` names a folder."""
    global _stopgap
    reason = _home_problem()
    if reason is None:
        return
    if os.path.isabs(os.environ.get(CACHE, "")):
        folder = Path(os.environ[CACHE])
    else:
        _stopgap = _Stopgap(_private_folder(reason), reason)
        folder = _stopgap.folder
        os.environ[CACHE] = str(folder)
    for variable, name in _LIBRARIES.items():
        os.environ.setdefault(variable, str(folder / name))


def _home_problem() -> str | None:
    """Why nothing can be kept in this user's home folder, as half a sentence."""
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
    """A folder among the temporary ones that is this user's alone; the same each time, where it is not another's."""
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
