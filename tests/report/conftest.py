"""A synthetic run with everything in it: fading channel, ranks by client, privacy, deliveries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlora.report import RoundRecord, RunFolder, Summary

SCENARIO = 'name = "intents <over> a & fading link"\nseed = 3\n\n[lora]\nr_max = 8\n'
PROJECTIONS = [
    [layer, name]
    for layer in range(4)
    for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
]
PRIVACY = {
    "epsilon": 7.94,
    "delta": 1e-5,
    "adjacency": "replace-one",
    "zero_out_epsilon": 3.61,
    "covers": ["labels and all that the server learns through the gradients of the cut layer"],
    "excludes": ["forward activations", "sequence lengths and timing", "reported statistics"],
}


def synthetic_rounds(rounds: int = 6, clients: int = 8, steps: int = 20) -> list[RoundRecord]:
    rng = np.random.default_rng(11)
    rows = rng.integers(90, 420, clients)
    skill = rng.normal(0, 0.03, clients)
    mean_snr = rng.uniform(-3, 14, clients)
    records: list[RoundRecord] = []
    for r in range(1, rounds + 1):
        fading = 10 * np.log10(rng.exponential(size=clients) + 0.05)
        per_client: dict[str, Any] = {}
        for k in range(clients):
            snr = float(mean_snr[k] + fading[k])
            rank = int(np.clip(round((snr + 5) / 2.2), 0, 8))
            accuracy = 0.93 - 0.5 * np.exp(-0.75 * r) + skill[k] + rng.normal(0, 0.008)
            ranks = [
                int(
                    np.clip(
                        rank + (2 if name in ("up_proj", "down_proj") else 0) - layer // 2, 0, 8
                    )
                )
                for layer, name in PROJECTIONS
            ]
            per_client[f"client-{k}"] = {
                "rows": int(rows[k]),
                "loss": 2.0 * np.exp(-0.55 * r) + 0.22 - 2 * float(skill[k]),
                "metric": float(min(accuracy, 0.99)),
                "mean_rank": float(np.mean(ranks)),
                "ranks": ranks,
                "snr_db": snr,
                "rate_bps": 180e3 * float(np.log2(1 + 10 ** (snr / 10))),
                "bits_up": 5_242_880 + int(rng.integers(9_000)),
                "bits_down": 2_700_000 + 26_000 * rank,
                "adapter_bits": 26_000 * rank,
                "delivered": bool(snr > -2.5),
                "epsilon": 7.94 * float(np.sqrt(r / rounds)),
            }
        late = sum(not item["delivered"] for item in per_client.values())
        records.append(
            {
                "round": r,
                "step": r * steps,
                "train_loss": 2.3 * float(np.exp(-0.5 * r)) + 0.2,
                "loss": float(np.mean([item["loss"] for item in per_client.values()])),
                "metric": float(np.mean([item["metric"] for item in per_client.values()])),
                "metric_name": "accuracy",
                "higher_is_better": True,
                "seconds": 3.1 + 0.2 * float(rng.random()),
                "tokens": 12_800 + int(rng.integers(900)),
                "bits": {
                    "up": {"activation": 26_000_000, "gradient": 15_900_000, "control": 61_000},
                    "down": {
                        "representation": 15_900_000,
                        "adapter": sum(item["adapter_bits"] for item in per_client.values()),
                        "control": 44_000,
                    },
                },
                "wire_bytes": {"up": 5_310_000, "down": 2_150_000},
                "air_seconds": 9.0 + 4 * float(rng.random()),
                "client_seconds": 50.0,
                "mean_rank": float(np.mean([item["mean_rank"] for item in per_client.values()])),
                "late_deliveries": late,
                "lost": ["client-5"] if r == 4 else [],
                "clients": per_client,
            }
        )
    return records


def summary_of(rounds: list[RoundRecord], **changes: Any) -> Summary:
    values: dict[str, Any] = {
        "metric_name": "accuracy",
        "higher_is_better": True,
        "clients": len(rounds[0]["clients"]) if rounds else 8,
        "seed": 3,
        "trainable_parameters": 61_440,
        "metric_before": 0.725,
        "privacy": PRIVACY,
        "peak_rss_server_bytes": 640 << 20,
        "extra": {"projections": PROJECTIONS},
    }
    return Summary.from_rounds(rounds, **{**values, **changes})


@pytest.fixture
def finished(tmp_path: Path) -> RunFolder:
    """Return the folder of a run that came to its end."""
    return write_run(tmp_path / "run", synthetic_rounds())


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunFolder]:
    def make(rounds: list[RoundRecord], **changes: Any) -> RunFolder:
        return write_run(tmp_path / "made", rounds, **changes)

    return make


@pytest.fixture
def make_rounds() -> Callable[..., list[RoundRecord]]:
    return synthetic_rounds


@pytest.fixture
def make_summary() -> Callable[..., Summary]:
    return summary_of


def write_run(path: Path, rounds: list[RoundRecord], **changes: Any) -> RunFolder:
    folder = RunFolder.create(path)
    folder.write_scenario(SCENARIO)
    clients = len(rounds[0]["clients"]) if rounds else 8
    folder.append_event("phase", name="train", rounds=len(rounds), steps=20, clients=clients)
    for record in rounds:
        folder.append_round(record)
    folder.write_summary(summary_of(rounds, **changes))
    folder.append_event("done", status="finished", text="")
    return folder
