"""Imports follow the layers: entry scripts, engine, methods, attacks; models and data are independent of these."""

import ast
from functools import cache

from conftest import ROOT

PACKAGES = ("attacks", "data", "engine", "methods", "models", "scripts", "utils")
SOURCES = [*ROOT.glob("*.py"), *(path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))]
BELOW_ENGINE = ("methods", "attacks", "models", "data", "utils")
READS_RUNS = (*BELOW_ENGINE, "engine.checkpoint", "engine.evaluation.records", "engine.unused_fields")

# Prefix of modules -> prefixes of the modules of ours that they may import; the longest prefix decides.
MAY_IMPORT = {
    "main": ("main", "main_eval", "engine", "utils"),
    "scripts": ("scripts", "engine", *BELOW_ENGINE),
    "engine": ("engine", *BELOW_ENGINE),
    "engine.reporting": ("engine.reporting", *READS_RUNS),
    "engine.export": ("engine.export", "engine.networks", *READS_RUNS),
    "methods": ("methods", "attacks", "utils"),
    "attacks": ("attacks", "utils"),
    "models": ("models", "utils"),
    "data": ("data", "utils"),
    "utils": ("utils",),
}
MUST_NOT_IMPORT = {
    "engine.training": ("engine.evaluation",),
    "engine.evaluation": ("engine.training",),
    "engine.fast": ("engine.training", "engine.evaluation"),
}


def module_of(path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in SOURCES}


@cache
def syntax_of(module) -> list[ast.AST]:
    return list(ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))))


def imports_of(module) -> set[str]:
    """The modules of ours that a module imports, in functions too. A script also finds those in its own folder."""
    names = set()
    for node in syntax_of(module):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: relative import"
            submodules = (f"{node.module}.{alias.name}" for alias in node.names)
            names |= {name if name in MODULES else node.module for name in submodules}
    folder = module.rpartition(".")[0]
    local = {f"{folder}.{name}" for name in names} if module.startswith("scripts") else set()
    return (names | local) & MODULES.keys()


def is_below(module, prefixes) -> bool:
    return any(module == prefix or module.startswith(f"{prefix}.") for prefix in prefixes)


def test_a_module_imports_only_from_layers_below():
    for module in MODULES:
        layer = max((prefix for prefix in MAY_IMPORT if is_below(module, [prefix])), key=len, default="main")
        forbidden = {prefix for name in MUST_NOT_IMPORT if is_below(module, [name]) for prefix in MUST_NOT_IMPORT[name]}
        for name in imports_of(module):
            assert is_below(name, MAY_IMPORT[layer]) and not is_below(name, forbidden), f"{module} imports {name}"


def test_no_module_of_ours_is_imported_by_string():
    for module in MODULES:
        calls = {ast.unparse(node.func).rpartition(".")[2] for node in syntax_of(module) if isinstance(node, ast.Call)}
        assert not calls & {"__import__", "run_path", "run_module"}, module
        strings = {node.value for node in syntax_of(module) if isinstance(node, ast.Constant)}
        assert "import_module" not in calls or not strings & MODULES.keys(), module  # it is for optional packages


def test_no_import_is_circular():
    left = {module: imports_of(module) - {module} for module in MODULES}
    while lowest := [module for module, imports in left.items() if not imports & left.keys()]:
        for module in lowest:
            del left[module]
    assert not left, "these import each other, or a module that does"
