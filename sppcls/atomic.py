"""Files that are whole or not there."""

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path


def write_bytes(path: Path, content: bytes) -> Path:
    """Write beside, then rename: ``path`` holds the old content or the new one, never half of it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(content)
        return beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> Path:
    """Write text beside, then rename."""
    return write_bytes(path, text.encode())


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """Write rows under the names of all their columns, in order of appearance, beside, then rename."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return write_text(path, text.getvalue())


def write_json(path: Path, values: object) -> Path:
    """Write JSON beside, then rename."""
    return write_text(path, json.dumps(values, indent=2) + "\n")
