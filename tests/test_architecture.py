"""Imports go down the house: entry scripts, engine, methods, attacks; models and data beside them; utils below all."""

import ast

import pytest
from conftest import ROOT

MAY_IMPORT = {
    "utils": {"utils"},
    "attacks": {"attacks"},
    "methods": {"methods", "attacks"},
    "models": {"models", "utils"},
    "data": {"data", "utils"},
    "engine": {"engine", "methods", "attacks", "models", "data", "utils"},
}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                submodule = ROOT / f"{node.module}.{alias.name}".replace(".", "/")
                yield f"{node.module}.{alias.name}" if submodule.with_suffix(".py").exists() else node.module


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_lies_below_it(room):
    rooms = {*MAY_IMPORT, "scripts", "tests"}
    for path in (ROOT / room).glob("*.py"):
        ours = {name.split(".")[0] for name in imported(path)} & rooms
        assert ours <= MAY_IMPORT[room], path


def test_no_module_of_ours_imports_itself_through_another():
    modules = {}
    for room in MAY_IMPORT:
        for path in (ROOT / room).glob("*.py"):
            name = room if path.stem == "__init__" else f"{room}.{path.stem}"
            modules[name] = set(imported(path))
    done = set()

    def visit(name, above):
        assert name not in above, " -> ".join([*above, name])
        if name not in done:
            for below in modules[name] & modules.keys():
                visit(below, [*above, name])
            done.add(name)

    for name in modules:
        visit(name, [])
