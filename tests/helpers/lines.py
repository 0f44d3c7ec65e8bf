"""Lines of ``metrics.jsonl`` as a tracker writes them, made without its code."""

import json
import zlib


def line_of(row):
    """A row as a line: the last entry is the CRC-32 of the line without it."""
    text = json.dumps(row)
    return text.removesuffix("}") + f', "crc32": {zlib.crc32(text.encode())}}}\n'


def write_lines(run, rows):
    """Writes the rows of a run folder as a tracker would."""
    (run / "metrics.jsonl").write_text("".join(line_of({k: v for k, v in row.items() if k != "crc32"}) for row in rows))


def as_version_0_1_0(run):
    """Takes from a run folder what version 0.1.0 did not write: the checksums of the lines."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("crc32")
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    about = json.loads((run / "run.json").read_text())
    about.pop("first_line_with_checksum")
    (run / "run.json").write_text(json.dumps(about))
