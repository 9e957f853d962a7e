"""What the compiled CPU kernels are built from, and how. Run as a program it builds them in place:
`python -m expand.kernels.builds [avx512] [avx2] [base]`.

`setup.py` reads this before anything is installed, so it needs the standard library alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCE = "cpu.cpp"
RECORD = "_build.json"
"""Says which builds failed, and why: an installer keeps what a compiler says to itself."""
TIMEOUT_S = 600

FLAGS = ("-O2", "-g0", "-std=c++17", "-fPIC", "-shared", "-pthread",
         # What no result hangs on, so that loops can be vectorised. Not -ffast-math: a NaN must stay one.
         "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")
# No -march=native: an environment on a shared file system runs on other processors too. The sets are those that torch
# asks for before it names a processor AVX512 or AVX2.
BUILDS: dict[str, tuple[str, ...]] = {"base": ()}
if platform.machine().lower() in ("x86_64", "amd64"):
    BUILDS = {
        "avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma",
                   "-mprefer-vector-width=256"),
        "avx2": ("-mavx2", "-mfma"), **BUILDS}

INSTALL_COMPILER = ("a C++ compiler: `apt-get install g++`, `dnf install gcc-c++`, `conda install gxx`, or on macOS "
                    "`xcode-select --install`")


class BuildFailed(Exception):
    """No compiler, or one that fails; the text says it in a line."""


def sources(folder: Path = HERE) -> list[Path]:
    """All files that a build depends on, in a fixed order."""
    return sorted([*folder.glob("*.cpp"), *folder.glob("*.h"), *folder.glob("builds.py")])


def source_hash(folder: Path = HERE) -> str:
    """What a build carries (X3D_SOURCE_HASH), so that one made from other sources is known: 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in sources(folder):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def compiler() -> list[str] | None:
    """The command of a C++ compiler: what CXX says, else the first that is here; None without one."""
    if named := shlex.split(os.environ.get("CXX", "")):
        return named if shutil.which(named[0]) else None
    return next(([name] for name in ("c++", "g++", "clang++") if shutil.which(name)), None)


def build(name: str, target: Path, folder: Path = HERE) -> None:
    """Compiles the sources in `folder` for the instruction set `name` into the library `target`.

    CXXFLAGS and LDFLAGS of the environment are used too. Raises `BuildFailed`.
    """
    command = compiler()
    if command is None:
        named = os.environ.get("CXX", "").strip()
        raise BuildFailed(f"CXX={named} names no program that is here" if named else "there is no C++ compiler")
    command += [*_from_environment("CXXFLAGS"), *FLAGS, *BUILDS[name], f'-DX3D_SOURCE_HASH="{source_hash(folder)}"',
                str(folder / SOURCE), "-o", str(target), *_from_environment("LDFLAGS")]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False,
                              timeout=TIMEOUT_S, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildFailed(f"{command[0]} did not run: {error}") from error
    if done.returncode:
        raise BuildFailed(_first_error(done.stderr) or f"{command[0]} ended with {done.returncode}")


def _from_environment(name: str) -> list[str]:
    return shlex.split(os.environ.get(name, ""))


def _first_error(said: str) -> str:
    """The line that says what is wrong, of all that a compiler says."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "")[:300]


def record(folder: Path, failures: dict[str, str], of: str) -> None:
    """Keeps in `folder` why builds of the sources with the hash `of` failed: {build: reason}."""
    (folder / RECORD).write_text(json.dumps({"source": of, "failures": failures}, indent=1) + "\n", encoding="utf-8")


def failures(folder: Path = HERE) -> dict[str, str]:
    """{build: reason} of the builds of these very sources that failed; nothing where that is not known."""
    try:
        kept = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return {str(name): str(why) for name, why in kept["failures"].items()} if (
            kept["source"] == source_hash(folder)) else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def file_name(build: str) -> str:
    """The file of a build: named as an extension module is, so that setuptools and wheels know what to do with it."""
    return f"_{build}{sysconfig.get_config_var('EXT_SUFFIX')}"


def build_all(names: Iterable[str] = (), folder: Path = HERE) -> dict[str, str]:
    """Builds `names`, by default all, beside their sources, at the same time; {build: reason} of those that failed."""
    names, failed = tuple(names) or tuple(BUILDS), {}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".build-") as temporary, ThreadPoolExecutor() as pool:
        made = {name: Path(temporary) / file_name(name) for name in names}
        tasks = {name: pool.submit(build, name, path, folder) for name, path in made.items()}
        for name, task in tasks.items():
            try:
                task.result()
                os.replace(made[name], folder / made[name].name)  # a process that has the old one open keeps it
            except BuildFailed as error:
                failed[name] = str(error)
    others = {name: why for name, why in failures(folder).items() if name not in names}
    record(folder, {**others, **failed}, source_hash(folder))
    return failed


def main(names: list[str]) -> int:
    """Builds in place and says how that went; 1 where a build failed."""
    if unknown := set(names) - set(BUILDS):
        print(f"no such build here: {', '.join(sorted(unknown))}; there are {', '.join(BUILDS)}", file=sys.stderr)
        return 2
    try:
        failed = build_all(names)
    except OSError as error:
        print(f"{HERE}: cannot be written to: {error.strerror}", file=sys.stderr)
        return 1
    for name in names or BUILDS:
        print(f"{name}: {failed.get(name, 'built')}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
