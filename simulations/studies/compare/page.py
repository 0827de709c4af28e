"""The page of a comparison: tables and plots in one file that opens without a network."""

from __future__ import annotations

import base64
import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fedlora.config import Scenario, scenario_to_toml
from fedlora.storage import replace_file

PAGE = "report.html"


@dataclass(frozen=True)
class Section:
    """A table of the page.

    Attributes
    ----------
    title
        What stands above it.
    header, rows
        Its cells.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def write_page(
    folder: Path,
    scenario: Scenario,
    sections: Sequence[Section],
    plots: Sequence[Path],
    remarks: Sequence[str],
) -> Path:
    """Write ``report.html`` into the folder of a comparison; every value is escaped.

    Parameters
    ----------
    folder
        Where to write.
    scenario
        What was compared.
    sections, plots
        Tables, and PNG files.
    remarks
        What has to be known before any figure is believed.
    """
    environment = Environment(
        loader=PackageLoader("simulations.studies", "compare"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = importlib.resources.files("fedlora.report").joinpath("page.css").read_text("utf-8")
    text = environment.get_template("page.html").render(
        name=scenario.name or folder.resolve().name,
        css=Markup(style),
        remarks=remarks,
        sections=sections,
        plots=[
            {"name": path.stem, "data": base64.b64encode(path.read_bytes()).decode("ascii")}
            for path in plots
        ],
        scenario=scenario_to_toml(scenario),
    )
    path = folder / PAGE
    replace_file(path, text.encode(errors="replace"))
    return path
