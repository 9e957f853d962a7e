"""The scripts, which have no suffix, as modules."""

import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader

import pytest


@pytest.fixture(scope="module")
def scripts(pytestconfig):
    """Loads a script as a module."""
    folder = pytestconfig.rootpath / "scripts"
    path = list(sys.path)
    sys.path.insert(0, str(folder))

    def load(name):
        spec = spec_from_loader(name, SourceFileLoader(name, str(folder / name)))
        module = sys.modules[name] = module_from_spec(spec)  # dataclasses look there
        spec.loader.exec_module(module)
        return module

    yield load
    sys.path[:] = path
