"""Models by name: those of the zoo, those of installed packages, and those of anybody's file."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module, util
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .choices import CHOICES
from .families import FAMILIES, FRAMEWORKS, Family
from .spec import Spec, check_name

if TYPE_CHECKING:
    from .model import Model

GROUP = "nngp_plugins.zoo"
GENERAL: dict[str, Any] = {"parametrisation": "standard", "init_scale": 1.0, "dtype": "float32", "base_width": None}


def list_models(*, framework: str | None = None, family: str | None = None) -> list[str]:
    """Returns the names of all models: those of the zoo, and those of installed packages.

    Args:
        framework: only those of this framework.
        family: only those of this architecture.

    Raises:
        ValueError: there is no such framework or family.

    Example:
        >>> import zoo
        >>> zoo.list(family="mlp")
        ['linen/mlp', 'nnx/mlp', 'haiku/mlp']
    """
    names = [f"{a}/{b}" for a in FRAMEWORKS for b in FAMILIES] + sorted(_plugins())
    parts = {name: name.rpartition("/")[::2] for name in names}
    if framework is not None:
        check_name("framework", framework, dict.fromkeys(a or "other" for a, _ in parts.values()))
    if family is not None:
        check_name("family", family, dict.fromkeys(b for _, b in parts.values()))
    return [name for name, (a, b) in parts.items() if framework in (None, a or "other") and family in (None, b)]


@cache
def _plugins() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def check(name: str) -> Family | None:
    """Refuses a name that is no model, and imports nothing.

    Returns:
        The family, if the model is one of the zoo's own.

    Raises:
        ValueError: there is no such model, file or function.
    """
    if is_file(name):
        path, _, function = name.partition(".py:")
        path = path.removesuffix(".py") + ".py"
        if not Path(path).is_file():
            raise ValueError(f"{name!r}: there is no file {path!r}.")
        if not function.isidentifier():
            raise ValueError(f"{name!r} names no function; write {path}:build.")
        return None
    check_name("model", name, list_models())
    return None if name in _plugins() else FAMILIES[name.partition("/")[2]]


def is_file(name: str) -> bool:
    """Returns whether a name is a ``file.py:function``."""
    return ".py:" in name or name.endswith(".py")


def get(name: str, spec: Spec | None = None, **knobs: Any) -> Model:
    """Returns a model. Only its framework is imported.

    Args:
        name: a name of :func:`zoo.list`, or ``path/to/file.py:function``. The builder is called with those of the
            arguments ``spec``, ``shape``, ``classes`` and the knobs that its signature names.
        spec: the inputs that it is built for, such as ``zoo.load("digits").spec``; None for an example of them.
        **knobs: the keyword arguments of the builder; and ``parametrisation``, ``init_scale``, ``dtype`` and
            ``base_width``, which work on every model, see :mod:`zoo.parametrisation`. The base width is that at which
            ``mup`` equals ``standard``; its default is the default width.

    Returns:
        A :class:`zoo.model.Model`.

    Raises:
        ValueError: there is no such model, knob or value; or the model takes other inputs.

    Example:
        >>> import zoo
        >>> model = zoo.get("linen/mlp", zoo.Spec((8, 8, 1)), width=64)
        >>> model.parameters, model.f.layer_shapes(*model.shapes[:1], model.inputs(5))["head"].shape
        (8970, (5, 10))
    """
    family = check(name)
    if spec is None:
        spec = family.example if family else Spec((32, 32, 3))
    if family:
        family.check(name, spec)
    builder = _builder(name, family)
    own, general = _sorted_knobs(name, builder, knobs)
    return _made(name, family, spec, builder, own, general)


def _builder(name: str, family: Family | None) -> Callable[..., Any]:
    if family:
        framework = name.partition("/")[0]
        builder: Callable[..., Any] = getattr(import_module(f"zoo.models.{framework}.{family.file}"), family.builder)
        return builder
    if not is_file(name):
        loaded: Callable[..., Any] = _plugins()[name].load()
        return loaded
    path, _, function = name.partition(".py:")
    path += ".py"
    location = Path(path).resolve()
    module_name = f"nngp_zoo_file_{location.stem}_{abs(hash(location))}"
    if module_name not in sys.modules:
        file = util.spec_from_file_location(module_name, location)
        assert file is not None
        assert file.loader is not None
        module = util.module_from_spec(file)
        sys.modules[module_name] = module
        try:
            file.loader.exec_module(module)
        except BaseException:
            del sys.modules[module_name]
            raise
    found = vars(sys.modules[module_name])
    functions = [key for key, value in found.items() if callable(value) and not key.startswith("_")]
    check_name(f"function of {path}", function, functions)
    return found[function]


def _parameters(builder: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The arguments of a function, or of a class, whose metaclass may hide them."""
    if not isinstance(builder, type):
        return inspect.signature(builder).parameters
    arguments = dict(inspect.signature(vars(builder)["__init__"]).parameters)
    # The first is self, and Linen gives each of its classes the other two.
    given_by_linen = ("parent", "name") if {"parent", "name"} <= set(arguments) else ()
    return {name: of for name, of in [*arguments.items()][1:] if name not in given_by_linen}


def _sorted_knobs(
    name: str, builder: Callable[..., Any], knobs: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The knobs of the builder and the general ones, with their defaults.

    Raises:
        ValueError: the model has no such knob, or a knob has a value that is none of its choices.
    """
    parameters = _parameters(builder)
    own = {key: p.default for key, p in parameters.items() if p.default is not p.empty and key not in GENERAL}
    for knob, value in knobs.items():
        if knob not in own and knob not in GENERAL:
            raise ValueError(f"{name} has no knob {knob!r}; its knobs are {', '.join([*own, *GENERAL])}.")
        check_knob(knob, value)
    if (knobs.get("base_width") is not None or knobs.get("parametrisation") == "mup") and "width" not in own:
        raise ValueError(f"{name} has no knob 'width', which parametrisation 'mup' scales with.")
    return {k: knobs.get(k, v) for k, v in own.items()}, {k: knobs.get(k, v) for k, v in GENERAL.items()}


def check_knob(knob: str, value: Any) -> None:
    """Refuses the value of a knob, whatever the model.

    Raises:
        ValueError: it is none of the knob's choices, or out of its range.
    """
    if knob in CHOICES:
        check_name(knob, value, CHOICES[knob])
    if knob in ("width", "base_width", "depth", "code") and value is not None and value < (knob != "depth"):
        raise ValueError(f"{knob}={value} must be positive.")
    if knob == "init_scale" and not 0 < value < float("inf"):
        raise ValueError(f"init_scale={value} must be a positive number.")


def _made(
    name: str,
    family: Family | None,
    spec: Spec,
    builder: Callable[..., Any],
    own: dict[str, Any],
    general: dict[str, Any],
) -> Model:
    from .frameworks import adapt
    from .model import Model, scaled
    from .parametrisation import scales

    def build(own: Mapping[str, Any]) -> Any:
        return _call(name, builder, {"spec": spec, "shape": spec.shape, "classes": spec.classes, **own})

    module = build(own)
    adapted = adapt(module, spec)
    params = base = adapted.shapes(spec)[0]
    if general["parametrisation"] == "mup":
        width = general["base_width"] or _parameters(builder)["width"].default
        general["base_width"] = width
        base = adapt(build({**own, "width": width}), spec).shapes(spec)[0]
    of = scales(general["parametrisation"], params, base, general["init_scale"])
    return Model(
        name=name,
        family=name if is_file(name) else name.rpartition("/")[2],
        knobs={**own, **general},
        spec=spec,
        module=module,
        adapted=scaled(adapted, of, general["dtype"]),
        scales=of,
        task=family.task if family else "classify",
        limit=family.limit if family else "",
    )


def _call(name: str, builder: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Calls a builder with those of the arguments that it names; one that takes ``rngs`` is a factory of NNX models."""
    parameters = _parameters(builder)
    unknown = [k for k, p in parameters.items() if p.default is p.empty and k not in (*arguments, "rngs")]
    if unknown:
        raise ValueError(
            f"{name} needs {', '.join(unknown)}, which nobody gives; a builder may name spec, shape, classes, and "
            "knobs with defaults."
        )
    given = {k: v for k, v in arguments.items() if k in parameters}
    return (lambda rngs: builder(rngs=rngs, **given)) if "rngs" in parameters else builder(**given)
