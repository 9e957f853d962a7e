"""CONTRIBUTING.md names files and functions that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLACES = re.findall(r"`([\w/]+\.py)(?:: ([\w.]+))?`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))


def definitions(tree: ast.AST, prefix: str = "") -> set[str]:
    names = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names |= {prefix + node.name, *definitions(node, f"{prefix}{node.name}.")}
    return names


@pytest.mark.parametrize("file, name", sorted(set(PLACES)))
def test_every_place_named_in_contributing_exists(file, name):
    path = ROOT / file if file.startswith(("tests/", "expand/")) else ROOT / "expand" / file
    assert path.is_file()
    assert not name or name in definitions(ast.parse(path.read_text(encoding="utf-8")))
