"""The final figures of a run: the keys of ``summary.json`` that scripts can rely on."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import fedlora
from fedlora.errors import FedloraError
from fedlora.report.records import (
    DIRECTIONS,
    Rounds,
    last_evaluated,
    mean,
    series,
    total_bits,
)

PACKAGES = ("fedlora", "torch", "transformers", "peft", "flwr", "ray", "opacus")
PRIVACY_KEYS = ("epsilon", "delta", "adjacency", "covers", "excludes")


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of the packages that decide a result, None if absent.

    Reads the installed metadata and imports none of them.
    """
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = fedlora.__version__ if name == "fedlora" else None
    return found


def commit() -> str | None:
    """Return the git commit that this code was installed from, or None.

    A checkout with uncommitted changes has ``-dirty`` after the hash.
    """
    root = Path(fedlora.__file__).resolve().parents[1]
    if (root / ".git").exists():  # not a repository further up that merely holds the environment
        describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(
                describe, cwd=root, check=True, capture_output=True, text=True, timeout=10
            )
            return done.stdout.strip() or None
    with contextlib.suppress(importlib.metadata.PackageNotFoundError, ValueError, AttributeError):
        text = importlib.metadata.distribution("fedlora").read_text("direct_url.json")
        found = json.loads(text or "{}").get("vcs_info", {}).get("commit_id")
        return found if isinstance(found, str) else None
    return None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a run came to.

    Attributes
    ----------
    metric_name, higher_is_better
        The task's metric, and whether more of it is better.
    metric, loss
        Held-out metric and loss at the last evaluation; None when there was none, or it was no
        finite number.
    metric_before
        Metric of the same head trained for the same steps on the frozen backbone; None when no
        baseline was run.
    rounds, steps
        Rounds that were finished, and optimiser steps that were taken in them.
    clients
        Clients that took part, those included that were lost later.
    seed
        Seed of the scenario.
    tokens
        Tokens that went through the server's blocks in training.
    seconds
        Wall-clock seconds of the rounds, evaluation included and start-up excluded.
    tokens_per_second, steps_per_second
        ``tokens`` and ``steps`` over ``seconds``.
    bits
        Payload in bits, without framing, by direction and kind.
    air_seconds
        Modelled air time in seconds: the slowest client of each round, summed over rounds.
    late_deliveries
        Adapters that missed their latency budget.
    mean_rank
        Mean over rounds of the mean rank over clients and projections; None when no round ended.
    trainable_parameters
        Parameters on the server that train.
    privacy
        ``epsilon``, ``delta``, ``adjacency``, ``covers`` and ``excludes`` (lists of sentences),
        ``guarantee`` (False where the noise can be repeated) and what else the accountant states;
        None when there is no differential privacy.
    peak_rss_server_bytes, peak_rss_edge_bytes
        Largest resident memory in bytes; None where it was not measured or clients share a process.
    versions, commit
        Of the software.
    untrained_rounds, resting_components
        Rounds in which no component of the adapter was trained, and the most components of a round
        that were left as they are because too few clients trained them for a robust average.
    extra
        Further keys, such as ``wire_bytes``, ``client_seconds``, ``energy_joules`` (transmit power
        times air time, both ends) or ``projections``.
    """

    metric_name: str
    higher_is_better: bool
    metric: float | None
    metric_before: float | None
    loss: float | None
    rounds: int
    steps: int
    clients: int
    seed: int
    tokens: int
    seconds: float
    tokens_per_second: float
    steps_per_second: float
    bits: Mapping[str, Mapping[str, int]]
    air_seconds: float
    late_deliveries: int
    mean_rank: float | None
    trainable_parameters: int
    untrained_rounds: int = 0
    resting_components: int = 0
    privacy: Mapping[str, object] | None = None
    peak_rss_server_bytes: int | None = None
    peak_rss_edge_bytes: int | None = None
    versions: Mapping[str, str | None] = field(default_factory=versions)
    commit: str | None = field(default_factory=commit)
    extra: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("rounds", "steps", "tokens", "seconds", "air_seconds", "late_deliveries"):
            value = getattr(self, name)
            if not value >= 0:
                raise FedloraError(f"summary {name} is {value}; it counts up from 0")
        for way, kinds in DIRECTIONS.items():
            _require_keys(f"bits.{way}", self.bits.get(way, {}), kinds)
        if self.privacy is not None:
            _require_keys("privacy", self.privacy, PRIVACY_KEYS)
        taken = sorted(set(self.extra) & {item.name for item in dataclasses.fields(self)})
        if taken:
            raise FedloraError(f"summary extra holds {', '.join(taken)}; set the field itself")

    @classmethod
    def from_rounds(
        cls,
        rounds: Rounds,
        *,
        metric_name: str,
        higher_is_better: bool,
        clients: int,
        seed: int,
        trainable_parameters: int,
        metric_before: float | None = None,
        privacy: Mapping[str, object] | None = None,
        peak_rss_server_bytes: int | None = None,
        peak_rss_edge_bytes: int | None = None,
        kept: int | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> Summary:
        """Add up the rounds of ``metrics.jsonl``; see the class for the parameters.

        Metric and loss are those of the round that is ``kept``, by default the last evaluated.

        ``wire_bytes`` (by direction), ``client_seconds``, ``energy_joules``, ``raw_bits``,
        ``samples`` (rows, each time that it was trained on) and ``deliveries_due`` (adapters that
        were to arrive) are summed into ``extra``.
        """

        def total(key: str) -> float:
            return sum(series(rounds, key)[1])

        def last(key: str) -> float | None:
            values = series(rounds, key)[1]
            return values[-1] if values else None

        evaluated = last_evaluated(rounds) if kept is None else kept

        def of_kept(key: str) -> float | None:
            found: dict[int, float] = dict(zip(*series(rounds, key), strict=True))
            return None if evaluated is None else found.get(evaluated)

        seconds, tokens = total("seconds"), int(total("tokens"))
        # records of releases before 0.2 do not say how many of a round were taken
        counted = all("steps" in record for record in rounds)
        steps = int(total("steps") if counted else last("step") or 0)
        counts = [record["components"] for record in rounds if "components" in record]
        wire_bytes = dict.fromkeys(DIRECTIONS, 0)
        for record in rounds:
            for way, size in (record.get("wire_bytes") or {}).items():
                wire_bytes[way] = wire_bytes.get(way, 0) + size
        return cls(
            metric_name=metric_name,
            higher_is_better=higher_is_better,
            metric=of_kept("metric"),
            metric_before=metric_before,
            loss=of_kept("loss"),
            rounds=len(rounds),
            steps=steps,
            clients=clients,
            seed=seed,
            tokens=tokens,
            seconds=seconds,
            tokens_per_second=tokens / seconds if seconds else 0.0,
            steps_per_second=steps / seconds if seconds else 0.0,
            bits=total_bits(rounds),
            air_seconds=total("air_seconds"),
            late_deliveries=int(total("late_deliveries")),
            mean_rank=mean(series(rounds, "mean_rank")[1]),
            trainable_parameters=trainable_parameters,
            untrained_rounds=sum(not own.get("trained") for own in counts),
            resting_components=max((own.get("resting", 0) for own in counts), default=0),
            privacy=privacy,
            peak_rss_server_bytes=peak_rss_server_bytes,
            peak_rss_edge_bytes=peak_rss_edge_bytes,
            extra={
                "wire_bytes": wire_bytes,
                "client_seconds": total("client_seconds"),
                "energy_joules": total("energy_joules"),
                "raw_bits": int(total("raw_bits")),
                "samples": sum(
                    own.get("rows", 0)
                    for record in rounds
                    for own in (record.get("clients") or {}).values()
                ),
                "deliveries_due": sum(
                    own.get("delivered") is not None
                    for record in rounds
                    for own in (record.get("clients") or {}).values()
                ),
                **(extra or {}),
            },
        )

    def to_dict(self) -> dict[str, object]:
        """Return the keys of ``summary.json``: those of this class, then the extra ones."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        extra = values.pop("extra")
        return {**values, **extra}


def _require_keys(name: str, found: Mapping[str, object], keys: Sequence[str]) -> None:
    missing = [key for key in keys if key not in found]
    if missing:
        raise FedloraError(f"summary {name} lacks {', '.join(missing)}; state every one")
