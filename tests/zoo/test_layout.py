"""The zoo keeps the rules of the house, and uses the public face of the library only."""

import ast
from pathlib import Path

import pytest

FILES = sorted(Path(__file__).parents[2].joinpath("zoo").rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(path.parts[-3:]))
def test_short_and_public(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            documented = ast.get_docstring(node) is not None
            doc = node.body[0].end_lineno - node.body[0].lineno + 1 if documented else 0
            assert node.end_lineno - node.lineno + 1 - doc <= 40, node.name
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for module in modules:
            names = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            if module.split(".")[0] == "nngp_plugins":
                assert not any(part.startswith("_") for part in [*module.split("."), *names]), module
