"""Importing the package loads no framework; a missing one is named with its extra."""

import subprocess
import sys

import pytest

OPTIONAL = {"flax", "haiku", "plotly", "tensorstore", "sklearn", "optax"}

# A package that is not installed, for every import that follows in that interpreter.
BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {package!r}:
            raise ModuleNotFoundError("No module named {package!r}", name={package!r})
sys.meta_path.insert(0, Block())
"""


def run(script: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


CALLS = {
    "from_linen": ("flax", "flax"),
    "from_nnx": ("flax", "flax"),
    "from_haiku": ("haiku", "haiku"),
    "from_equinox": ("equinox", "equinox"),
    "from_keras": ("keras", "keras"),
}


@pytest.fixture(scope="module")
def lines():
    """What one interpreter prints, as each import of JAX takes seconds."""
    blocks = "".join(BLOCK.format(package=package) for package in dict.fromkeys(p for p, _ in CALLS.values()))
    loaded = f"print(*sorted({OPTIONAL!r} & sys.modules.keys()))\n"
    done = run(
        f"import sys, nngp_plugins\n{loaded}import plotly\n{loaded}{blocks}"
        + f"for call in {[*CALLS]}:\n"
        + "    try:\n        getattr(nngp_plugins, call)(object())\n"
        + "    except ModuleNotFoundError as error:\n        print(error)\n"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_import_loads_no_optional_package(lines):
    assert lines[0] == ""


def test_the_check_can_fail(lines):
    assert "plotly" in lines[1].split()


def test_haiku_needs_no_flax():
    # Haiku imports Flax by itself where there is one, so the test takes it away.
    done = run(
        BLOCK.format(package="flax")
        + "import haiku as hk, jax, jax.numpy as jnp, nngp_plugins as nngp\n"
        + "f = nngp.as_model_fn(hk.transform(lambda x: hk.Linear(2)(x)))\n"
        + "params, _ = jax.eval_shape(f.init, jax.random.key(0), jnp.ones((1, 3)))\n"
        + "print(f.layer_shapes(params, jnp.ones((4, 3)))['linear'].shape)\n"
        + "print(sorted(name for name in sys.modules if name.split('.')[0] == 'flax'))"
    )
    assert done.stdout.splitlines() == ["(4, 2)", "[]"], done.stderr


def test_missing_framework_names_the_extra(lines):
    assert lines[2:] == [
        f"this needs {package}, which is not installed; run: pip install 'nngp-plugins[{extra}]'"
        for package, extra in CALLS.values()
    ]
