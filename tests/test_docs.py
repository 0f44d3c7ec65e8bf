import functools
import re
import runpy
import types
from pathlib import Path

import pytest

import nngp_plugins as nngp

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks_of(page):
    """The blocks of Python on a page. Those of the tutorial go on from each other, so they are one."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    return ["\n".join(blocks)] if page.name == "tutorial.md" else blocks


BLOCKS = [
    pytest.param(code, id=f"{page.relative_to(ROOT)}-{i}", marks=[] if page.parent == ROOT else pytest.mark.exhaustive)
    for page in PAGES
    for i, code in enumerate(blocks_of(page))
]
PUBLIC = {
    "": nngp,
    "metrics.": nngp.metrics,
    "gp.": nngp.gp,
    "callbacks.writers.": nngp.writers,
    "report.": nngp.report,
}


@functools.cache
def run(code):
    """The names that a block leaves."""
    names = {"__name__": "__main__"}
    exec(compile(code, "docs", "exec"), names)
    return names


@pytest.mark.parametrize("code", BLOCKS)
def test_code_in_the_docs_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the tutorial writes run folders
    run(code)


def test_links_lead_to_files():
    for page in ROOT.glob("*.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_reference_has_every_public_name_once():
    pages = "".join(page.read_text() for page in sorted((ROOT / "docs" / "reference").glob("*.md")))
    entries = re.findall(r"^::: nngp_plugins\.(.*)$", pages, flags=re.MULTILINE)
    public = {
        f"{room}{name}"
        for room, module in PUBLIC.items()
        for name in getattr(module, "__all__", vars(module))
        if not name.startswith("_") and not isinstance(getattr(module, name), types.ModuleType)
    }
    # another name of KernelPlan; what a module imports for its types; write_report is the entry report.write_report
    public -= {"Job", "callbacks.writers.Any", "callbacks.writers.TYPE_CHECKING", "write_report"}
    others = {"callbacks.writers.Console", "gp.sklearn.NNGPFeatures", "closed_form.dense", "closed_form.DenseKernelFn"}
    assert sorted(entries) == sorted(public | others)


def test_documented_shapes_are_true():
    """The comments of the README's Haiku block."""
    names = run(next(param.values[0] for param in BLOCKS if "import haiku" in param.values[0]))
    shapes = names["f"].layer_shapes(names["params"], names["x"], state=names["state"])
    assert {name: y.shape for name, y in shapes.items()} == {
        "conv": (32, 8, 8, 16),
        "norm": (32, 8, 8, 16),
        "head": (32, 10),
    }
    assert {name: k.shape for name, k in names["kernels"].items()} == {"conv": (32, 32), "head": (32, 32)}


def test_the_page_of_metrics_is_what_the_catalogue_says():
    """Run docs/make_metrics.py where it is not."""
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert page == runpy.run_path(str(ROOT / "docs" / "make_metrics.py"))["page"]()


def test_the_catalogue_has_every_metric():
    entries = nngp.metrics.catalogue()
    functions = {name for name, value in vars(nngp.metrics).items() if callable(value) and name[0].islower()}
    of_the_catalogue = {"catalogue", "entry", "entry_of", "unregister"}
    of_trackers = {
        "default_metrics",
        "evaluate",
        "evaluate_layer",
        "identity_of",
        "is_in_units_of_kernel",
        "labels_of",
        "needs_spectrum",
        "of_targets",
    }
    of_outputs = {"features", "gram_of", "grams_of_products", "product_from_first", "rows_of", "stacked_grams"}
    of_outputs |= {"eigenvalues", "undivided", "with_eigenvalues"}
    others = {"bootstrap", "permutation_test", *of_the_catalogue, *of_trackers, *of_outputs}
    assert {entry.name for entry in entries} == functions - others | {"kernel_velocity"}
    assert all(entry.source and entry.formula and entry.range and entry.cost for entry in entries)
