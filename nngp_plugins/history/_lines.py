"""The lines of ``metrics.jsonl``: a row each, with its checksum."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ._files import FIRST_CHECKED, METRICS
from ._rows import CHECKSUM, LISTS, Row

_BEFORE_SUM = f', "{CHECKSUM}": '.encode()
_STEPS = range(-(2**63), 2**63)


def line_of(row: Row) -> str:
    """A row as a line, with the CRC-32 of the line without it as its last entry."""
    text = json.dumps(row)
    return f"{text[:-1]}{_BEFORE_SUM.decode()}{zlib.crc32(text.encode())}}}\n"


def read_rows(folder: Path, lines: Iterable[bytes], about: Mapping[str, Any]) -> list[Row]:
    """The rows of a run folder.

    Args:
        folder: the run folder, for messages.
        lines: the lines of its ``metrics.jsonl`` without their ends.
        about: the contents of its ``run.json``; empty if there is none.

    Raises:
        ValueError: a line is damaged; the message says which and why.
    """
    # Version 0.1.0 wrote lines without checksums.
    first_checked = about.get(FIRST_CHECKED, math.inf)
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(_checked(line, is_needed=number >= first_checked).decode())
            _check(row, rows[-1]["step"] if rows else None)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{folder / METRICS} is damaged in line {number}: {error}.") from error
        rows.append(row)
    return rows


def _checked(line: bytes, *, is_needed: bool) -> bytes:
    """The line without its checksum, which is right."""
    text, has_sum, said = line.rpartition(_BEFORE_SUM)
    if not has_sum:
        if is_needed:
            raise ValueError("it has no checksum")
        return line
    text += b"}"
    if said != f"{zlib.crc32(text)}}}".encode():
        raise ValueError("its checksum is wrong")
    return text


def _check(row: Any, before: int | None) -> None:
    if not isinstance(row, dict) or not {"step", "seconds"} <= row.keys():
        raise ValueError("it is not a snapshot with its step and its seconds")
    step = row["step"]
    if type(step) is not int or step not in _STEPS:
        raise ValueError(f"step {step!r} is not a whole number")
    if before is not None and step <= before:
        raise ValueError(f"step {step} does not come after step {before}")
    for name, value in row.items():
        if name in LISTS:
            kind, of = LISTS[name]
            if not isinstance(value, list) or not all(type(item) is kind for item in value):
                raise ValueError(f"{name} is not a list of {of}")
        elif not isinstance(value, float) and (type(value) is not int or value not in _STEPS):
            raise ValueError(f"{name!r} is not a number")
