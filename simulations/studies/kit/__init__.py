"""What all studies share: trials by key, results that a kill leaves whole, one lock, workers."""

from simulations.studies.kit.folder import StudyFolder, write_table
from simulations.studies.kit.results import Record, Results
from simulations.studies.kit.run import run_missing

__all__ = ["Record", "Results", "StudyFolder", "run_missing", "write_table"]
