"""The keys of a device's own node configuration: what its owner decides, and no server."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self

from fedlora.config.data import check_columns
from fedlora.config.node_values import Report, read_value
from fedlora.config.privacy import ClientLimit
from fedlora.errors import FedloraError, require

_DATA_KEYS: Final = (
    *("test", "text", "label", "columns", "record_separator", "pattern", "prompt_separator"),
    *("messages", "prompt", "completion", "chat", "classes", "holdout", "values", "group"),
    *("axes", "segment"),
)
_LIMIT_KEYS: Final = ("privacy_delta", "privacy_min_sigma", "privacy_tight")
_IDLE_S: Final = 12 * 3600.0


@dataclass(frozen=True)
class NodeKeys:
    """What stands in ``flower-supernode --node-config``; a key's name has dashes there.

    Everything else in it is refused, so that a slip never takes a limit away.

    Attributes
    ----------
    partition_id
        The client's number, from 0; each device its own.
    num_partitions
        Flower's own, in its simulation; means nothing on a device.
    data, test
        This device's own files: training records, and held-out ones.
    text, label, columns
        Columns of ``data`` that are text and label, and the names of all where a file has no header
        line. Where they are left out the scenario's ``data`` section names them; beside
        ``privacy-epsilon`` text and label must be set, as a server that names the label's column as
        the text would be sent every label.
    messages, prompt, completion, chat
        For language modelling, in place of text: the column of conversations, or those of prompts
        and completions, and whether the chat template renders these. Where none of them and no text
        is set, the scenario's ``data`` section says.
    record_separator, pattern
        For a ``.txt`` file: what separates records (a line break), and a regular expression whose
        named groups become columns.
    prompt_separator
        For language modelling: what stands between prompt and completion. Where it is left out the
        scenario says; beside ``privacy-epsilon`` a scenario that names another is refused.
    classes
        Names of the classes, separated by commas. A run with other ones is refused. Where it is
        left out beside ``privacy-epsilon``, a record whose label the run does not name takes part
        with noise alone.
    holdout
        Share of ``data`` that is held out, drawn once by a secret of this device (0.1 where
        ``privacy-report`` allows reports, else 0); not with ``test``. Without any privacy the
        scenario's ``data.holdout`` counts.
    values, group, axes, segment
        For forecasts, as in the scenario's ``data``, which says where they are left out. Beside
        ``privacy-epsilon`` ``segment``, or ``axes`` with ``record``, must be set.
    scenario_data
        ``"true"`` takes the part of the scenario's data that falls to this client, of whatever file
        the scenario names: for trials on machines that hold nothing private. Not with ``data`` and
        not with ``privacy-epsilon``.
    model
        Edge package or model folder; required beside ``privacy-epsilon``. Where it is left out a
        scenario may name models of installed packages (``package:``), and with ``scenario-data``
        any.
    state
        Folder where head and optimiser are kept between rounds, with the owner's log and audit file
        (``~/.fedlora/states``).
    server
        ``HOST`` or ``HOST:PORT`` of the tensor stream, several separated by commas: an invitation
        to dial anything else is refused.
    idle_limit_s
        How long a server may ask nothing before the device leaves, in seconds (43200).
    retention
        ``"false"``: nothing that this device sends is for the server to keep over a step, so that
        activations are sent in every epoch again (``"true"``). An honest server then keeps none.
    tokens
        ``"false"``: a run that sends tokens as such (``link.activation = "tokens"``) is refused
        (``"true"``). As a server can mostly tell them from exact activations, set noise on these,
        too, where texts are to be hidden.
    privacy_epsilon
        The most that any record may ever spend, over all runs, replace-one; a run that plans more
        is refused, and so is one without noise.
    privacy_delta
        The delta of that limit (1e-5).
    privacy_min_sigma
        The least noise that an upload may carry, over the clipping norm.
    privacy_tight
        ``"true"`` holds the exact epsilon of Gaussian noise to the limit instead of its (larger)
        Rényi bound.
    privacy_ledger
        File in which spending is written (``~/.fedlora/privacy-ledger-N``).
    privacy_report
        ``"true"``: where a scenario asks for them, counts over held-out rows are told with noise,
        which their ledger entries pay for. ``"unprotected"``: they are told exactly, and nothing
        protects the held-out rows, as a server can read each label from them. ``"false"``: nothing
        is evaluated.
    privacy_report_limit
        Evaluations that one run may have, at most (100).
    privacy_personal_head
        ``"true"`` allows a personal head under ``privacy.release = "full"``: it learns from labels
        as they are, and they leave traces in later uploads that no noise is counted for.
    privacy_statistics
        ``"true"`` lets statistics of the text be told where a scenario asks for them.
    privacy_scores
        ``"true"`` lets histograms of held-out rows' scores by class be told where a scenario asks
        for them and counts are told exactly; else such a run is refused.
    privacy_mechanisms
        Names of plug-in mechanisms that a scenario's ``privacy.release`` may name beside fedlora's
        own, separated by commas. A plug-in says itself what it costs, so try it with
        ``check_mechanism`` first; none is used without this key.
    generate_allowed
        ``"true"``: prompts and texts may be generated with a server's blocks beside
        ``privacy-epsilon``. Their embeddings cross the cut without noise, and nothing is charged
        for them; a server can mostly tell the words.
    """

    partition_id: int | None = None
    num_partitions: int = 0
    data: str = ""
    test: str = ""
    text: str = ""
    label: str = ""
    columns: tuple[str, ...] = ()
    record_separator: str | None = None
    pattern: str | None = None
    prompt_separator: str | None = None
    messages: str = ""
    prompt: str = ""
    completion: str = ""
    chat: Literal["", "auto", "yes", "no"] = ""
    classes: tuple[str, ...] = ()
    holdout: float | None = None
    values: tuple[str, ...] = ()
    group: str = ""
    axes: tuple[str, ...] = ()
    segment: int = 0
    scenario_data: bool = False
    model: str = ""
    state: str = ""
    server: tuple[str, ...] = ()
    idle_limit_s: float = _IDLE_S
    retention: bool = True
    tokens: bool = True
    privacy_epsilon: float | None = None
    privacy_delta: float = 1e-5
    privacy_min_sigma: float = 0.0
    privacy_tight: bool = False
    privacy_ledger: str = ""
    privacy_report: Report = "false"
    privacy_report_limit: int = 100
    privacy_personal_head: bool = False
    privacy_statistics: bool = False
    privacy_scores: bool = False
    privacy_mechanisms: tuple[str, ...] = ()
    generate_allowed: bool = False

    def __post_init__(self) -> None:
        if self.holdout is not None:
            require(
                0 <= self.holdout < 1, f"node config holdout is {self.holdout}; set 0 to below 1"
            )
            require(
                not self.test,
                f"node config sets test {self.test!r} and holdout {self.holdout}; set one of them",
            )
        require(
            0 < self.idle_limit_s < math.inf,
            f"node config idle-limit-s is {self.idle_limit_s}; set seconds above 0",
        )
        require(
            self.privacy_report_limit >= 1,
            f"node config privacy-report-limit is {self.privacy_report_limit}; set 1 or more, or "
            'privacy-report="false"',
        )
        for name in self.privacy_mechanisms:
            require(
                ":" not in name,
                f"node config privacy-mechanisms names {name!r}, and no server may choose code on "
                "this device; install the plug-in and name what it is registered as",
            )
        self._check_data()
        if self.limit is not None:
            self._check_limited()

    def _check_data(self) -> None:
        plain = NodeKeys.__dataclass_fields__
        odd = [name for name in _DATA_KEYS if getattr(self, name) != plain[name].default]
        require(
            bool(self.data) or not odd,
            f"node config sets {', '.join(map(dashed, odd))} but no data; name their file",
        )
        require(
            not (self.data and self.scenario_data),
            f"node config sets data {self.data!r} and scenario-data; a device has one of them",
        )
        separator = self.prompt_separator or ""
        check_columns(self.text, self.messages, self.prompt, self.completion, separator, "")
        require(
            not self.text or self.text != self.label,
            f"text and label are both the column {self.text!r}, so the label would be sent as "
            "text; name two",
        )

    def _check_limited(self) -> None:
        require(
            not self.scenario_data,
            "node config sets scenario-data beside privacy-epsilon, but then the scenario, and so "
            "the server, chooses the records; set data instead",
        )
        require(
            bool(self.model),
            "node config sets privacy-epsilon but no model; set it to the edge package or model "
            "folder, as a server that names paths could find out which there are",
        )

    @property
    def form(self) -> Mapping[str, str]:
        """What the owner says of how records are read; empty where that is the scenario's."""
        keys = ("text", "messages", "prompt", "completion")
        named = {key: getattr(self, key) for key in keys}
        return named if any(named.values()) else {}

    @property
    def limit(self) -> ClientLimit | None:
        """The owner's limit; None where there is none."""
        if self.privacy_epsilon is None:
            return None
        return ClientLimit(
            self.privacy_epsilon, self.privacy_delta, self.privacy_min_sigma, self.privacy_tight
        )

    def ledger(self) -> Path:
        """Return where spending is written."""
        default = Path.home() / ".fedlora" / f"privacy-ledger-{self.partition_id or 0}"
        return Path(self.privacy_ledger).expanduser() if self.privacy_ledger else default

    def states(self) -> Path:
        """Return the folder of the states of all runs."""
        default = Path.home() / ".fedlora" / "states"
        return Path(self.state).expanduser() if self.state else default

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Self:
        """Read a node configuration as Flower hands it over.

        Raises
        ------
        FedloraError
            When a key is unknown, a value is of the wrong kind or out of range, or keys contradict
            each other.
        """
        known = {dashed(name): name for name in cls.__dataclass_fields__}
        values: dict[str, Any] = {}
        for key, value in config.items():
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
                mend = f"did you mean {near[0]}?" if near else "fedlora keys --node lists all"
                raise FedloraError(f"node config has {key!r}, which is no key; {mend}")
            name = known[key]
            values[name] = read_value(name, key, value)
        loose = [name for name in _LIMIT_KEYS if name in values]
        require(
            "privacy_epsilon" in values or not loose,
            f"node config sets {', '.join(map(dashed, loose))} but no privacy-epsilon; set the "
            "most that a sample may spend",
        )
        return cls(**values)


def states_folder(config: Mapping[str, Any]) -> Path:
    """Return the ``state`` folder of a node configuration, even of one that cannot be used."""
    named = config.get("state")
    try:
        return NodeKeys(state=named if isinstance(named, str) else "").states()
    except RuntimeError:  # of the home of a user that there is not
        return NodeKeys().states()


def dashed(name: str) -> str:
    """Return a key as it is typed."""
    return name.replace("_", "-")


def shown_default(name: str) -> str:
    """Return a key's default as the documentation shows it; empty for none."""
    default = NodeKeys.__dataclass_fields__[name].default
    if default in (None, "", (), dataclasses.MISSING):
        return ""
    return str(default).lower() if isinstance(default, bool) else str(default)
