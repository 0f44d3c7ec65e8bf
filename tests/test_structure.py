"""The layout that CONTRIBUTING promises: short files and functions, no private import across rooms, arrows one way."""

import ast
import graphlib
import re
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "nngp_plugins"
GROUND_FLOOR = {
    "_require",
    "_show",
    "_static",
    "_tables",
    "_trees",
    "_typing",
    "_version",
    "_durable",
    "_fingerprint",
    "_live",
    "_meshes",
    "_pictures",
    "_threads",
}  # every room may use these
ARROWS = {  # what each room may use besides the ground floor
    "adapters": set(),
    "engine": set(),
    "metrics": set(),
    "store": {"engine"},
    "gp": {"engine", "metrics"},
    "charts": {"metrics"},
    "history": {"charts", "metrics"},
    "_model_gram": {"engine", "metrics", "store"},
    "callbacks": {"adapters", "engine", "metrics", "history", "charts"},
    "report": {"history", "charts", "metrics"},
}


def name_of(path):
    """The dotted name of a module; a package has the name of its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules():
    """Every module of the package by its dotted name, parsed."""
    return {name_of(path): (path, ast.parse(path.read_text())) for path in sorted(PACKAGE.rglob("*.py"))}


def nodes(tree, when):
    """All nodes, or only those that run when the module is imported: no function bodies, no ``TYPE_CHECKING``."""
    if when == "ever":
        yield from ast.walk(tree)
        return
    for node in ast.iter_child_nodes(tree):
        is_later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        is_later |= isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not is_later:
            yield node
            yield from nodes(node, when)


def imports(path, tree, when="ever"):
    """The dotted names that a file imports, such as ``nngp_plugins.engine.batch``; relative ones are resolved."""
    here = name_of(path).split(".")
    if path.name != "__init__.py":
        here = here[:-1]
    for node in nodes(tree, when):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            yield from (".".join([*base, alias.name]) for alias in node.names)


def module_of(name):
    """The module that an imported name is, or is in."""
    return name if name in modules() else name.rpartition(".")[0]


def room_of(name):
    """The folder of the package, or the file beside the folders; the package itself is in no room."""
    return ".".join(name.split(".")[1:2])


def pairs():
    """Every module with every name that it imports from the package."""
    for module, (path, tree) in modules().items():
        for name in imports(path, tree):
            if name.split(".")[0] == PACKAGE.name:
                yield module, name


def is_private(part):
    return part.startswith("_") and not part.startswith("__")


def test_files_have_at_most_300_lines():
    lines = {name: len(path.read_text().splitlines()) for name, (path, _) in modules().items()}
    assert {name: count for name, count in lines.items() if count > 300} == {}


def lines_of(function):
    """The lines of a function without its docstring."""
    first = function.body[0]
    is_docstring = ast.get_docstring(function) is not None
    docstring = first.end_lineno - first.lineno + 1 if is_docstring else 0
    return function.end_lineno - function.lineno + 1 - docstring


def test_functions_have_at_most_40_lines():
    lines = {
        f"{name}.{node.name}": lines_of(node)
        for name, (_, tree) in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: count for name, count in lines.items() if count > 40} == {}


def test_no_private_import_crosses_a_room():
    crossing = [
        f"{module} imports {name}"
        for module, name in pairs()
        if room_of(module) not in ("", room_of(name))
        and room_of(name) not in GROUND_FLOOR
        and any(map(is_private, name.split(".")))
    ]
    assert not crossing, "\n".join(crossing)


def test_arrows_point_one_way():
    wrong = []
    for module, name in pairs():
        here, there = room_of(module), room_of(module_of(name))
        allowed = {here, *GROUND_FLOOR, *ARROWS.get(here, ())}
        if here and there not in allowed:
            wrong.append(f"{module} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_no_circle_of_files():
    graph = {
        module: {module_of(name) for name in imports(path, tree, "at import")} & set(modules())
        for module, (path, tree) in modules().items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_nothing_imports_the_zoo():
    for module, (path, tree) in modules().items():
        assert "zoo" not in {name.split(".")[0] for name in imports(path, tree)}, module


@pytest.mark.parametrize("folder", ["tests", "benchmarks"])
def test_no_private_name_of_the_package_is_used(folder):
    private = []
    for path in sorted({*(ROOT / folder).rglob("*.py")} - {Path(__file__)}):
        text = path.read_text()
        used = {name for name in imports(path, ast.parse(text)) if name.split(".")[0] == PACKAGE.name}
        used |= set(re.findall(r"nngp_plugins[.\w]*\._[a-z]\w*", text))  # also in strings, as monkeypatch takes them
        found = [name for name in sorted(used) if any(map(is_private, name.split(".")))]
        private += [f"{path.relative_to(ROOT)} uses {name}" for name in found]
    assert not private, "\n".join(private)


def test_the_rules_see_what_breaks_them():
    """A negative control: relative imports are resolved, and those in functions are told apart."""
    path = PACKAGE / "callbacks" / "_tracker.py"
    tree = ast.parse("from ..engine._axes import plan\nfrom . import _kept\ndef f():\n    import zoo.cli\n")
    at_import = ["nngp_plugins.engine._axes.plan", "nngp_plugins.callbacks._kept"]
    assert list(imports(path, tree, "at import")) == at_import
    assert list(imports(path, tree)) == [*at_import, "zoo.cli"]
    (function,) = ast.parse('def f():\n    """One.\n\n    Two.\n    """\n    return 1\n').body
    assert lines_of(function) == 2
