"""What docs/models.md says of the registered models; run as a module, it writes that there."""

from importlib.metadata import version
from pathlib import Path

from .table import LARGE, MODELS, WHICH, Model, load

PAGE = Path(__file__).parents[3] / "docs" / "models.md"
SECTION = "packages" if WHICH == "packages" else "frameworks"
HEAD = ["| package | framework | model | layers | modules seen | |", "|---|---|---|---|---|---|"]
TITLES = {"linen": "Linen", "nnx": "NNX", "haiku": "Haiku", "equinox": "Equinox", "keras": "Keras"}


def row(name: str, model: Model) -> str:
    package, what = name.split("/")
    framework = type(model.f.adapter).__name__.removesuffix("Adapter")
    summary = model.f.summary(model.params, model.x, **model.kwargs)
    seen = f"{summary.modules - len(summary.unseen)} of {summary.modules}" if summary.modules else ""
    return f"| {package} {version(package)} | {framework} | {what} | {len(summary.shapes)} | {seen} | {model.note} |"


def frameworks() -> list[str]:
    """A line for each, of the names of its models."""
    names = {}
    for name in sorted({*MODELS, *LARGE}, key=str.lower):
        framework, _, what = name.partition("/")
        names.setdefault(TITLES.get(framework, "Functions"), []).append(what or framework)
    return [f"- **{title}**: {'; '.join(names[title])}" for title in [*TITLES.values(), "Functions"]]


def lines() -> list[str]:
    """Those of the page between the marks of the section."""
    return PAGE.read_text().split(f"<!-- {SECTION} -->\n")[1].splitlines()


def write() -> None:
    load()
    new = [*HEAD, *(row(name, make()) for name, make in MODELS.items())] if SECTION == "packages" else frameworks()
    mark = f"<!-- {SECTION} -->\n"
    before, _, after = PAGE.read_text().split(mark)
    PAGE.write_text(mark.join([before, "".join(f"{line}\n" for line in new), after]))


if __name__ == "__main__":
    write()
