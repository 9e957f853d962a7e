"""The compiled CPU kernels; all else about the package is in setup.cfg.

They are optional: an install without a compiler, or with one that fails, goes through, and the package then trains
with PyTorch's own operators.
"""

import runpy
import shutil
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT, KERNELS = Path(__file__).resolve().parent, "expand/kernels"
builds = runpy.run_path(str(ROOT / KERNELS / "builds.py"))


class BuildKernels(build_ext):
    """Compiles the one source once for each instruction set, at the same time. The results are libraries for ctypes,
    not Python modules, so Python's compiler options and headers are left out of it."""

    def finalize_options(self):
        super().finalize_options()
        self.parallel = self.parallel or len(self.extensions)
        self.failures = {}

    def build_extension(self, ext):
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        made = ROOT / KERNELS / target.name
        if made.exists() and builds["source_hash"]().encode() in made.read_bytes():
            shutil.copy(made, target)  # scripts/setup compiles while packages are fetched
            return
        try:
            builds["build"](ext.kernels, target)
        except builds["BuildFailed"] as error:
            self.failures[ext.kernels] = str(error)
            target.unlink(missing_ok=True)  # left by an earlier build of other sources
            raise CompileError(str(error)) from error

    def build_extensions(self):
        super().build_extensions()
        folder = Path(self.build_lib, KERNELS)
        folder.mkdir(parents=True, exist_ok=True)
        builds["record"](folder, self.failures, builds["source_hash"]())

    def copy_extensions_to_source(self):
        """For an editable install."""
        super().copy_extensions_to_source()
        shutil.copy(Path(self.build_lib, KERNELS, builds["RECORD"]), ROOT / KERNELS)


def extension(name):
    headers = [f"{KERNELS}/{path.name}" for path in builds["sources"]() if path.suffix == ".h"]
    made = Extension(f"expand.kernels._{name}", [f"{KERNELS}/{builds['SOURCE']}"], depends=headers, language="c++",
                     optional=True)
    made.kernels = name
    return made


setup(ext_modules=[extension(name) for name in builds["BUILDS"]], cmdclass={"build_ext": BuildKernels})
