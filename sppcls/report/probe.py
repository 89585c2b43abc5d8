"""What ``sppcls probe`` shows: a row a variant, and probe.json in a folder."""

from pathlib import Path
from typing import Any

from rich.table import Table

from sppcls.atomic import write_json
from sppcls.build import pick_device
from sppcls.data.decode import shown
from sppcls.errors import ConfigError
from sppcls.measure.features import GAP
from sppcls.measure.probe import Options, probe
from sppcls.report.page import points
from sppcls.terminal import show, table


def run_probe(out: str, device: str, **options: Any) -> int:
    """Measure with `Options`, show the table, write probe.json into ``out``, and return 0."""
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}; name a folder that can be written") from None
    found = probe(Options(device=pick_device(device), **options))
    write_json(folder / "probe.json", found)
    show(probe_table(found), *_lines(found), f"written: {folder}/probe.json")
    return 0


def probe_table(found: dict[str, Any]) -> Table:
    """Return a row a variant: accuracy over images and over classes, and the difference from the first row."""
    options, sizes = found["options"], f"{found['train_images']} + {found['test_images']} images"
    network = f"{options['backbone']} ({options['layer']})"
    title = f"{network}, {found['classes']} classes, {options['splits']} splits of {sizes}"
    columns = ("fit", "scales", "levels", "accuracy, %", "mean over classes, %", "against the first, points")
    rows = []
    for row in found["variants"]:
        levels = "gap" if row["levels"] == (GAP,) else ",".join(map(str, row["levels"]))
        scores = [_spread(row[name], row[f"{name}_std"]) for name in ("accuracy", "mean_class_accuracy")]
        half = row["difference_half_width"]
        gain = points(row["difference"]) + (f" ± {half * 100:.1f}" if half is not None else "")
        last = "" if row is found["variants"][0] else gain
        rows.append([row["fit"], ",".join(map(str, row["scales"])), levels, *scores, last])
    return table(title, columns, rows)


def _spread(mean: float, deviation: float | None) -> str:
    return f"{mean * 100:.2f}" + (f" ± {deviation * 100:.2f}" if deviation is not None else "")


def _lines(found: dict[str, Any]) -> list[str]:
    left_out = [f"left out, cannot be read: {shown(name)}" for name in found["left_out"]]
    return [
        *left_out,
        f"{found['images']} images; features {found['seconds_features']} s, SVM {found['seconds_svm']} s",
    ]
