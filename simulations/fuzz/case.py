"""A case on disk: a scenario file with all that it names beside it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedlora.lora.targets import linear_modules
from fedlora.split import Checkpoint, Cut, model_folder
from simulations.fuzz.models import make_model
from simulations.fuzz.records import FORMS, make_records, write_records
from simulations.fuzz.starts import make_start

QUICKSTART = "package:simulations/quickstart/decoder"
SCENARIO = "scenario.toml"


def write_case(case: Mapping[str, Any], folder: Path, assets: Path) -> Path:
    """Write a case's files; return its scenario.

    Parameters
    ----------
    case
        Values by key, as ``draw_case`` returns them.
    folder
        Where the scenario and its data go.
    assets
        Where models and adapters are, which cases have in common.
    """
    folder.mkdir(parents=True, exist_ok=True)
    keys = {key: value for key, value in case.items() if not key.startswith("_")}
    seed = case["seed"] % 1000 if isinstance(case.get("seed"), int) else 0
    model = _model(case["_model"], assets)
    found = {"model.path": model, **FORMS.get(case.get("_form", ""), {})}
    for which, rows in (("train", case["_rows"]), ("test", case.get("_test_rows", 0))):
        if rows:
            records = make_records(case, rows, seed + (which == "test"))
            written = write_records(folder, which, case["_format"], records)
            found[f"data.{which}"] = written.pop("file")
            found |= written
    if case.get("channel.model") == "trace":
        lines = ["time_s,snr_db,bandwidth_hz", *(f"{t},{10 - t},1e6" for t in range(0, 30, 5))]
        (folder / "trace.csv").write_text("\n".join(lines) + "\n")
        found["channel.options.path"] = "trace.csv"
    if case.get("_start"):
        found["lora.start"] = str(
            make_start(model, case.get("task.kind", ""), case["_start"], assets)
        )
    if any(isinstance(target, int) for target in _listed(keys.get("lora.targets"))):
        keys["lora.targets"] = _ends(model, keys["lora.targets"])
    path = folder / SCENARIO
    lines = [f"{key} = {to_toml(value)}" for key, value in (found | keys).items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def keep_case(case: Mapping[str, Any], folder: Path, assets: Path) -> Path:
    """Write a case so that its folder holds all that it needs; return its scenario."""
    path = write_case(case, folder, assets)
    text = path.read_text(encoding="utf-8")
    for place in sorted(assets.glob("*/*")):
        if str(place) in text:
            shutil.copytree(place, folder / place.name, dirs_exist_ok=True)
            text = text.replace(str(place), place.name)
    path.write_text(text, encoding="utf-8")
    return path


def to_toml(value: object) -> str:
    """Write one value of a scenario, whatever it is."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(k)} = {to_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(to_toml, value)) + "]"
    if isinstance(value, str):  # JSON's escapes are TOML's
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return repr(value)


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _ends(model: str, places: list[int]) -> list[str]:
    """Return ends of names of a model's linear modules, by their place among all of them."""
    checkpoint = Checkpoint(model_folder(model))
    blocks = checkpoint.blocks
    names = linear_modules(checkpoint, Cut(blocks, 0, blocks))
    ends = sorted({name.rpartition(".")[2] for name in names})
    return sorted({ends[place % len(ends)] for place in places})


def _model(kind: str, assets: Path) -> str:
    return QUICKSTART if kind == "quickstart" else str(make_model(kind, assets / "models" / kind))
