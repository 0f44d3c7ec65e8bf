"""The app, its ``--version``, and the options that commands share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any, get_type_hints

import typer

from ..choices import CHOICES
from ..data import DATASETS
from .manners import EXIT_CODES, CommandError, Common, as_number, listed, manners, refusing

app = typer.Typer(
    name="nngp-zoo",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
)

Model = Annotated[str, typer.Argument(help="A name of `nngp-zoo list`, or FILE.py:FUNCTION.", metavar="MODEL")]
Data = Annotated[
    str, typer.Option(help=f"{', '.join(DATASETS)}, the path of a .npz, a .npy or a folder, hf:NAME or tfds:NAME.")
]
Seed = Annotated[int, typer.Option(min=0, help="Random seed of the parameters and of the order of examples.")]
Layers = Annotated[list[str] | None, typer.Option(help="Pattern of layers, such as 'conv*'. May be repeated.")]


def _one_of(knob: str) -> str:
    return f"One of {', '.join(CHOICES[knob])}."


_SHARED: dict[str, Any] = {
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")],
    "as_json": Annotated[bool, typer.Option("--json", help="Print the result as JSON.")],
}
_KNOBS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "width": (int, "Number of features that grows in the infinite-width limit.", {"min": 1}),
    "depth": (int, "Number of layers or blocks.", {"min": 0}),
    "activation": (str, _one_of("activation"), {}),
    "parametrisation": (str, _one_of("parametrisation"), {}),
    "init_scale": (float, "Factor on the initial standard deviation of weights.", {}),
    "dtype": (str, _one_of("dtype"), {}),
}


def _knob(kind: Any, text: str, options: dict[str, Any]) -> Any:
    return Annotated[kind | None, typer.Option(help=text, rich_help_panel="Model", **options)]


def _several(name: str) -> Any:
    return _knob(str, f"{_KNOBS[name][1].removesuffix('.')}; several values are separated by commas.", {})


_MODEL = {name: _knob(*about) for name, about in _KNOBS.items()}
_MODEL["given"] = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any other knob as KNOB=VALUE. May be repeated.", rich_help_panel="Model"),
]


def command(
    example: str, *, knobs: bool = False, several: Sequence[str] = (), again: str = "the same command starts anew"
) -> Callable[..., Any]:
    """Registers a command; its first argument is a :class:`Common`, and the options of that are added here.

    Args:
        example: a command line that ``--help`` shows.
        knobs: whether it takes the knobs of a model.
        several: the knobs of which it takes several values, ``--width 32,64``; they become tuples.
        again: what the same command does after Ctrl-C.
    """
    shared = _SHARED | (_MODEL if knobs else {}) | {name: _several(name) for name in several}

    def register(function: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(function, include_extras=True)
        own = [p for name, p in inspect.signature(function).parameters.items() if name != "common"]
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters = [p.replace(annotation=hints[p.name], kind=kind) for p in own]
        for name, annotation in shared.items():
            default = False if name in _SHARED else None
            parameters.append(inspect.Parameter(name, kind, default=default, annotation=annotation))

        def run(**given: Any) -> None:
            with manners(again):
                values = {name: given.pop(name) for name in shared}
                common = Common(values.pop("quiet"), values.pop("as_json"), _given_knobs(values, several))
                function(common, **given)

        vars(run)["__signature__"] = inspect.Signature(parameters)
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        run.__doc__ = function.__doc__
        app.command(function.__name__.removesuffix("_"), epilog=f"Example: {example}")(run)
        return function

    return register


def _given_knobs(values: dict[str, Any], several: Sequence[str]) -> dict[str, Any]:
    """The knobs that were given, checked as far as that needs no model."""
    from ..registry import check_knob

    named = {_option(name): (name, value) for name, value in values.items() if name not in ("given", *several)}
    for word in values.get("given") or ():
        knob, equals, value = word.partition("=")
        if not equals:
            raise CommandError(f"--set {word}: write it as KNOB=VALUE, such as --set norm=layer.")
        named[f"--set {knob}"] = (knob.replace("-", "_"), as_number(value))
    knobs = {}
    for option, (knob, value) in named.items():
        if value is not None:
            with refusing(option, value):
                check_knob(knob, value)
            knobs[knob] = value
    for name in several:
        if values[name] is not None:
            knobs[name] = listed(_option(name), values[name], _KNOBS[name][0])
            with refusing(_option(name), values[name]):
                for value in knobs[name]:
                    check_knob(name, value)
    return knobs


def _option(knob: str) -> str:
    return f"--{knob.replace('_', '-')}"


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"nngp-zoo {version('nngp-plugins')}")
        raise typer.Exit


@app.callback()
def _app(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Questions about architectures, each answered by one command."""
