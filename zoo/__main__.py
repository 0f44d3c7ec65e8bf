"""The ``nngp-zoo`` command, also ``python -m zoo``. If packages are missing, it says what to install."""

from __future__ import annotations

from importlib.util import find_spec


def main() -> None:
    """Checks that the packages of the zoo are installed, and runs the command."""
    needed = ("typer", "rich", "sklearn", "flax", "haiku", "optax", "plotly", "jinja2", "tensorstore")
    if missing := [package for package in needed if find_spec(package) is None]:
        raise SystemExit(f"nngp-zoo needs {', '.join(missing)}; run: pip install 'nngp-plugins[zoo]'")
    from .cli import app

    app(prog_name="nngp-zoo")


if __name__ == "__main__":
    main()
