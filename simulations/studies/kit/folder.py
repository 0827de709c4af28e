"""The folder of a study: its scenario and settings, its finished trials, and one who runs it."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedlora.config import Scenario, load_scenario, scenario_to_toml
from fedlora.errors import FedloraError
from fedlora.import_path import plugin_folders
from fedlora.storage import FolderKind, explained, held_folder, replace_file
from simulations.studies.kit.results import Key, Record, Results

TRIALS, SCENARIO, CODE = "trials.jsonl", "scenario.toml", "plugins.json"
_PART = f".{SCENARIO}.part"


class StudyFolder:
    """Keeps what a study has found; the same study goes on with it, another one is refused.

    Parameters
    ----------
    path
        The folder; made if it does not exist.
    noun
        What it holds, such as ``a comparison``.
    files
        Patterns of all that the study writes there.
    scenario, settings
        What all its trials have in common.
    key
        Returns the key of the trial that a record is of.
    overwrite
        Whether a study that is there is replaced; else it is gone on with.
    marks
        Further files of which each tells that a study of this kind is there.

    Raises
    ------
    FedloraError
        When the folder holds a study with other settings, trials of other code of a plug-in, or
        something else.
    """

    def __init__(
        self,
        path: Path,
        noun: str,
        files: tuple[str, ...],
        scenario: Scenario,
        key: Callable[[Record], Key],
        *,
        settings: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        marks: tuple[str, ...] = (),
    ) -> None:
        self.path, self.noun = path, noun
        bare = noun.partition(" ")[2]
        kind = FolderKind(bare, (TRIALS, *marks), (SCENARIO, _PART, *files, CODE, TRIALS))
        self._lines = "".join(f"# {name} = {value!r}\n" for name, value in (settings or {}).items())
        self._scenario = scenario
        if not self._barely_begun():
            kind.check_free(path, overwrite=True, option="--out")
        with explained(path):
            path.mkdir(parents=True, exist_ok=True)
        code = _plugin_code()
        with held_folder(path, noun):
            if overwrite:
                kind.clear(path)
            elif not self._barely_begun():
                self._check_same()
                code = self._kept_code() | code
            with explained(path):
                (path / TRIALS).touch()  # marks the folder before anything else is there
            replace_file(path / SCENARIO, (self._lines + scenario_to_toml(scenario)).encode())
            if code:
                replace_file(path / CODE, f"{json.dumps(code, indent=1)}\n".encode())
        self.results = Results(path / TRIALS, key, noun)

    def _barely_begun(self) -> bool:
        """Tell whether nothing is there but what a study leaves that was killed as it began."""
        if not self.path.is_dir():
            return False
        trials = self.path / TRIALS
        names = {place.name for place in self.path.iterdir()}
        return names <= {".lock", _PART, TRIALS} and not (
            trials.is_file() and trials.stat().st_size
        )

    def _check_same(self) -> None:
        kept = self.path / SCENARIO
        text = kept.read_text(encoding="utf-8") if kept.is_file() else ""
        lines = "".join(line for line in text.splitlines(keepends=True) if line.startswith("# "))
        if not text or lines != self._lines or load_scenario(kept) != self._scenario:
            raise FedloraError(
                f"{self.path} holds {self.noun} with other settings; give another --out, or "
                "replace it with --overwrite"
            )

    def _kept_code(self) -> dict[str, str]:
        """Return the digests that are there; refuse to go on with trials of other code."""
        kept = self.path / CODE
        try:
            found = dict(json.loads(kept.read_text(encoding="utf-8"))) if kept.is_file() else {}
        except (OSError, ValueError, TypeError) as error:
            raise FedloraError(f"cannot read {kept} ({error}); delete it") from None
        code, trials = _plugin_code(), self.path / TRIALS
        changed = [name for name in found if name in code and code[name] != found[name]]
        if changed and trials.is_file() and trials.stat().st_size:
            raise FedloraError(
                f"{self.path} holds trials that ran with other code of {changed[0]}, which would "
                f"stand beside new ones; replace them with --overwrite, give another --out, or, "
                f"where they would come out the same, delete {kept}"
            )
        return found

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep others from running the same trials, and read what they may have added before.

        Raises
        ------
        FedloraError
            When the study is going on elsewhere.
        """
        with held_folder(self.path, self.noun):
            self._check_same()
            self.read()
            yield

    def read(self) -> None:
        """Read what others may have added."""
        self.results.read()


def _plugin_code() -> dict[str, str]:
    """Return a digest of each module that came from a folder of plug-ins, by its name."""
    found = {}
    for folder in map(os.path.realpath, plugin_folders()):
        for name, module in sorted(sys.modules.items()):
            file, place = getattr(module, "__file__", None), os.path.join(folder, *name.split("."))
            # Not what lies deeper, such as the libraries of an environment in that folder.
            if file and os.path.realpath(file) in (f"{place}.py", f"{place}/__init__.py"):
                found[name] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return found


def write_table(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a CSV file whole."""
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(columns))
    writer.writeheader()
    writer.writerows(rows)
    replace_file(path, stream.getvalue().encode())
