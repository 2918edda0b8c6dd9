"""Every public module, class, function and method has a docstring."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mergeforget"
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__main__.py")


def undocumented(path: Path) -> list[str]:
    """Names without a docstring; methods that override one of a base class inherit its text."""
    tree = ast.parse(path.read_text("utf-8"))
    module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    module = module.removesuffix(".__init__")
    missing = [] if ast.get_docstring(tree) else ["the module"]
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if any(isinstance(d, ast.Name) and d.id == "overload" for d in node.decorator_list):
            continue  # the definition after the overloads has the docstring
        if not ast.get_docstring(node):
            missing.append(node.name)
        if not isinstance(node, ast.ClassDef):
            continue
        methods = [m for m in node.body if isinstance(m, ast.FunctionDef)]
        bare = [m.name for m in methods if m.name[0] != "_" and not ast.get_docstring(m)]
        if bare and (node.bases or node.keywords):
            found = getattr(import_module(module), node.name)
            if getattr(found, "_is_protocol", False):
                continue
            bare = [m for m in bare if not any(hasattr(base, m) for base in found.__mro__[1:])]
        missing += [f"{node.name}.{m}" for m in bare]
    return missing


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_public_names_are_documented(path: Path) -> None:
    assert undocumented(path) == []


def test_each_class_name_occurs_once() -> None:
    """One class name has one meaning, so that a search for it finds one class."""
    places: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}
