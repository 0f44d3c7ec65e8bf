import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = [
    pytest.param(code, id=f"{page.relative_to(ROOT)}-{i}")
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for i, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL))
]


@pytest.mark.parametrize("code", BLOCKS)
def test_code_in_the_docs_runs(code):
    exec(compile(code, "docs", "exec"), {"__name__": "__main__"})


def test_links_lead_to_files():
    for page in ROOT.glob("*.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_documented_shapes_are_true():
    """The comments of the README's Haiku block."""
    block = next(param.values[0] for param in BLOCKS if "import haiku" in param.values[0])
    names = {}
    exec(block, names)
    shapes = names["f"].layer_shapes(names["params"], names["x"], state=names["state"])
    assert {name: y.shape for name, y in shapes.items()} == {
        "conv": (32, 8, 8, 16),
        "norm": (32, 8, 8, 16),
        "head": (32, 10),
    }
    assert {name: k.shape for name, k in names["kernels"].items()} == {"conv": (32, 32), "head": (32, 32)}
