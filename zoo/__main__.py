"""The ``nngp-zoo`` command, also ``python -m zoo``. If packages are missing, it says what to install."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, NoReturn

NEEDED = ("typer", "rich", "sklearn", "flax", "haiku", "optax", "plotly", "jinja2", "tensorstore")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Checks that the packages of the zoo are installed, and runs the command.

    Args:
        arguments: the words after ``nngp-zoo``; None for those of this process.

    Raises:
        SystemExit: always, with the exit code of the command.
    """
    if missing := [package for package in NEEDED if find_spec(package) is None]:
        raise SystemExit(f"nngp-zoo needs {', '.join(missing)}; run: pip install 'nngp-plugins[zoo]'")
    shown, warnings.formatwarning = warnings.formatwarning, _warning
    try:
        raise SystemExit(_run(arguments))
    except KeyboardInterrupt:
        print("nngp-zoo: interrupted before anything was begun", file=sys.stderr)  # noqa: T201
        raise SystemExit(130) from None
    finally:
        warnings.formatwarning = shown


def _run(arguments: Sequence[str] | None) -> int:
    """Runs the command, and says in one line what is wrong with the arguments."""
    import typer

    from .commands import app

    refusals: tuple[type[Exception], ...] = tuple(
        kind for kind in typer.BadParameter.__mro__ if kind.__name__ in ("ClickException", "UsageError")
    )
    try:
        code: Any = app(args=arguments, prog_name="nngp-zoo", standalone_mode=False)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except refusals as error:
        said: Any = error
        if type(error).__name__ == "NoArgsIsHelpError":
            said.show()
            return 2
        print(f"nngp-zoo: {' '.join(said.format_message().split())}", file=sys.stderr)  # noqa: T201
        return 2
    return code if isinstance(code, int) else 0


def _warning(message: Any, *_: Any, **__: Any) -> str:
    return f"nngp-zoo: warning: {message}\n"


if __name__ == "__main__":
    main()
