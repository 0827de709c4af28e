"""The runs of the study: a number of participants drawn at random, or chosen by a trade-off."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from fedlora.config import Scenario
from simulations.in_process import Record, connect


@dataclass(frozen=True)
class Setting:
    """One run.

    Attributes
    ----------
    participants
        Clients of each round, drawn at random; 0: chosen by the online scheme.
    trade_off
        The scheme's weight V of one more participant, in square seconds.
    mean_delay_s
        The scheme's limit on the mean delay of a round, in seconds.
    seed
        Of data, partition, model, fading and draws.
    """

    participants: int
    trade_off: float
    mean_delay_s: float
    seed: int

    @property
    def key(self) -> Setting:
        """What tells runs apart."""
        return self

    def __str__(self) -> str:
        """Return a few words for a line of progress."""
        who = f"n = {self.participants}" if self.participants else f"V = {self.trade_off:g}"
        return f"{who}, seed {self.seed}"


def scenario_of(base: Scenario, setting: Setting) -> Scenario:
    """Return the scenario of one run: every round is evaluated, and no adapter is delivered."""
    options: dict[str, Any]
    if setting.participants:
        scheduler, options = "random_k", {"clients": setting.participants}
    else:
        scheduler = "lyapunov"
        options = {"trade_off": setting.trade_off, "mean_delay_s": setting.mean_delay_s}
    total_hz = base.channel.schedule.total_bandwidth_hz or sum(
        base.channel.bandwidth_hz[client % len(base.channel.bandwidth_hz)]
        for client in range(base.federation.clients)
    )
    schedule = replace(
        base.channel.schedule, scheduler=scheduler, options=options, total_bandwidth_hz=total_hz
    )
    return replace(
        base,
        seed=setting.seed,
        channel=replace(base.channel, deliver_every=0, schedule=schedule),
        evaluate=replace(base.evaluate, every=1, baseline=False),
        compute=replace(base.compute, threads=1),
    )


def run_setting(setting: Setting, base: Scenario) -> dict[str, Any]:
    """Run one setting; return a row for each round, which setting it was, and of what metric."""
    record = Record()
    connect(scenario_of(base, setting), record, workers=1).training.run()
    rows, air_seconds = [], 0.0
    for item in record.rounds:
        air_seconds += item["air_seconds"]
        rows.append(
            {
                **asdict(setting),
                "round": item["round"],
                "chosen": len(item["clients"]),
                "loss": item["loss"],
                "metric": item["metric"],
                "round_seconds": item["air_seconds"],
                "air_seconds": air_seconds,
                "energy_joules": item["energy_joules"],
            }
        )
    name = record.rounds[-1]["metric_name"]
    return {"setting": asdict(setting), "rows": rows, "metric_name": name}
