"""The rooms of `expand/` import downwards only, and no modules import each other in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("errors", "version", "machine", "home", "streams", "logs", "untrusted_input", "config",
         "space", "expansion", "rundir", "processes", "data", "kernels", "model", "training", "executors", "report",
         "inference", "exports", "run", "health", "api", "cli")
"""Lowest first: a room may import from itself and from the rooms before it (docs/decisions/001-rooms.md)."""
ENTRANCES = {"expand", "expand.__main__"}
"""The package itself and `python -m expand`: they lead to the functions of `api` and to the command line."""


def read_modules() -> dict[str, ast.Module]:
    """The syntax tree of every module of `expand`, by its dotted name."""
    modules = {}
    for path in sorted((ROOT / "expand").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        modules[name] = ast.parse(path.read_text(encoding="utf-8"))
    return modules


def list_imports(tree: ast.AST, modules: set[str], *, is_top: bool = True) -> Iterator[tuple[str, int, bool]]:
    """The modules of `expand` that a tree imports: (module, line, whether the import is carried out on loading)."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, is_top) for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module in modules:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield (inner if inner in modules else node.module), node.lineno, is_top
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or is_type_checking(node)
            yield from list_imports(node, modules, is_top=is_top and not inside)


def is_type_checking(node: ast.AST) -> bool:
    """Whether a node is `if TYPE_CHECKING:`, whose imports are for type checkers only."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def room_of(module: str) -> str:
    """The room that a module of `expand` belongs to."""
    return module.split(".")[1]


def test_no_room_imports_from_a_room_above_it() -> None:
    modules = read_modules()
    upward = [f"{name}:{line} imports {target}"
              for name, tree in modules.items() if name not in ENTRANCES
              for target, line, _ in list_imports(tree, set(modules))
              if target in ENTRANCES or ROOMS.index(room_of(target)) > ROOMS.index(room_of(name))]
    assert not upward, "\n".join(upward)


def test_every_room_stands_in_the_order() -> None:
    assert {room_of(name) for name in read_modules() if name not in ENTRANCES} == set(ROOMS)


def test_no_modules_import_each_other_in_a_circle() -> None:
    modules = read_modules()
    graph = {name: {target for target, _, is_top in list_imports(tree, set(modules)) if is_top and target != name}
             for name, tree in modules.items()}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise AssertionError("a circle of imports: " + " -> ".join(error.args[1])) from None
