"""The notebook of examples/ runs in a real kernel, and its exported page shows what the live one shows."""

import base64
import copy
import io
import pickle
import re
from pathlib import Path

import pytest

import nngp_plugins as nngp

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
nbconvert = pytest.importorskip("nbconvert")
NOTEBOOK = Path(__file__).parents[1] / "examples" / "notebook.ipynb"


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # outputs are not committed
    folder = {"metadata": {"path": str(tmp_path_factory.mktemp("notebook"))}}
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3", resources=folder).execute()
    return notebook


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def html_of(notebook, last_line):
    """What the cell that ends with this line shows as HTML."""
    (cell,) = [cell for cell in code(notebook) if cell.source.splitlines()[-1] == last_line]
    return "\n".join(output.data["text/html"] for output in cell.outputs if "text/html" in output.get("data", {}))


@pytest.mark.exhaustive
def test_every_cell_runs_and_nothing_complains(notebook):
    assert [cell.execution_count for cell in code(notebook)] == [*range(1, len(code(notebook)) + 1)]
    streams = [output for cell in code(notebook) for output in cell.outputs if output.output_type == "stream"]
    assert {output.name for output in streams} == {"stdout"}  # stderr has warnings, such as that of ipywidgets
    (said,) = streams
    assert "The kernels of `layers_4`" in said.text


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("last_line", "shown"),
    [
        ("f", "<strong>ModelFn</strong>"),
        ("f.summary(params, x)", "modules with parameters: 3 seen"),
        ("nngp.plan(kernel_fn, x, None, params)", "kernel job"),
        ('nngp.gram(f, x[probe], params)["layers_4"]', "<div>rank: 10</div>"),
        ("tracker", "cka of layers_4: 0"),
        ("runs", "fast"),
    ],
)
def test_objects_show_themselves(notebook, last_line, shown):
    assert shown in html_of(notebook, last_line)


@pytest.mark.exhaustive
def test_what_changes_is_one_output(notebook):
    training = next(cell for cell in code(notebook) if "Console(" in cell.source)
    (table,) = training.outputs
    assert "step 99" in table.data["text/html"]
    bar, store = code(notebook)[-1].outputs
    assert "kernel" in bar.data["text/html"].lower()
    assert "<div>written: 100%</div>" in store.data["text/html"]


@pytest.mark.exhaustive
def test_the_exported_page_has_its_pictures_without_a_network(notebook):
    image = pytest.importorskip("PIL.Image")
    page, _ = nbconvert.HTMLExporter().from_notebook_node(notebook)
    urls = re.findall(r'<img[^>]*src="data:image/png;base64,([^"]*)"', page, flags=re.DOTALL)
    pictures = [image.open(io.BytesIO(base64.b64decode(url))).convert("RGB") for url in urls]
    thumbnails, plots = [p for p in pictures if p.width < 100], [p for p in pictures if p.width > 700]
    assert (len(thumbnails), len(plots)) == (2, 2)
    assert all(p.getcolors(20) is None for p in pictures)  # a blank picture has one colour
    assert len(re.findall("<img", page)) == len(re.findall(r'<img[^>]*alt="[^"]+"', page))


class TestPlots:
    @pytest.fixture
    def figure(self, tmp_path, monkeypatch):
        monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
        renderers = pytest.importorskip("plotly.io").renderers
        monkeypatch.setattr(renderers, "default", "plotly_mimetype")  # that of Jupyter
        rows = [{"step": step, "seconds": 0.0, "kernel/a/cka": 1 - step / 10} for step in range(5)]
        return nngp.History(rows).plot()

    @staticmethod
    def shown(figure):
        """What IPython is given to show, by its type."""
        from IPython.core.interactiveshell import InteractiveShell
        from IPython.utils.capture import capture_output

        InteractiveShell.instance()
        try:
            with capture_output() as captured:
                figure._ipython_display_()
        finally:
            InteractiveShell.clear_instance()
        (output,) = captured.outputs
        return output.data

    def test_have_a_picture_beside_them(self, figure):
        data = self.shown(figure)
        assert set(data) == {"application/vnd.plotly.v1+json", "image/png"}
        assert data["image/png"].startswith(b"\x89PNG")

    def test_that_the_user_changed_are_shown_as_changed(self, figure):
        data = self.shown(figure.update_layout(title="of my own"))
        assert set(data) == {"application/vnd.plotly.v1+json", "text/html"}
        assert "of my own" in data["text/html"].rpartition("Plotly.newPlot")[2]

    def test_can_be_copied_and_pickled(self, figure):
        for again in (copy.deepcopy(figure), pickle.loads(pickle.dumps(figure))):
            assert again.to_dict() == figure.to_dict()
