"""A run is sound: finite figures, nobody lost, nothing to complain of, and what may move has."""

from __future__ import annotations

import math

import torch

from fedlora.config import scenario_from_toml, scenario_to_toml
from simulations.fuzz.trial import Trial, equal, is_factor


def written(trial: Trial) -> str | None:
    """Hold the scenario to what its TOML says when it is read back."""
    scenario = trial.run.scenario
    again = scenario_from_toml(scenario_to_toml(scenario))
    return "" if again == scenario else "the scenario is another one when it is read back"


def finite(trial: Trial) -> str | None:
    """Refuse NaN and infinity in rounds, summary and adapter."""
    server = trial.federation.server
    bad = _infinite(trial.run.rounds) or _infinite(server.training.summary_fields(), "summary")
    tensors = trial.run.adapter.items()
    bad = bad or next((name for name, t in tensors if not torch.isfinite(t).all()), "")
    return f"{bad} is not finite" if bad else ""


def undisturbed(trial: Trial) -> str | None:
    """Refuse clients that are lost in a simulation, and strategies that erred."""
    server = trial.federation.server
    complaints = server.training.ranking.strategy.complaints
    if complaints:
        return f"the rank strategy erred: {complaints[0]}"
    return f"clients were lost: {server.cohort.reasons()}" if server.cohort.lost else ""


def moved(trial: Trial) -> str | None:
    """Hold what was trained to what the run says was, and untrained components to the start."""
    scenario, whole = trial.scenario, trial.run.adapter
    adapter = {name: tensor for name, tensor in whole.items() if is_factor(name)}
    initial = {name: tensor for name, tensor in trial.initial.items() if is_factor(name)}
    if scenario.lora.freeze_a:
        changed = [
            name
            for name, tensor in adapter.items()
            if name.endswith(".A") and not torch.equal(tensor, trial.initial[name])
        ]
        if changed:
            return f"{changed[0]} has moved, although lora.freeze_a is true"
    options = scenario.ranks.options
    if scenario.ranks.strategy == "uniform" and options.get("train", "delivered") == "delivered":
        r = options.get("r", scenario.lora.r_max)
        for name, tensor in adapter.items():
            places = slice(r, None) if name.endswith(".A") else (slice(None), slice(r, None))
            if not torch.equal(tensor[places], trial.initial[name][places]):
                return f"{name} has moved beyond the uniform rank {r}"
    told = any(own["components"]["trained"] for own in trial.run.rounds)
    if told and equal(adapter, initial) and scenario.train.lr > 1e-9:
        return "components are told to be trained, and none has moved"
    if not told and not equal(adapter, initial):
        return "no component is told to be trained, and some have moved"
    still = [n for n, t in whole.items() if not is_factor(n) and torch.equal(t, trial.initial[n])]
    if still and scenario.train.lr > 1e-9:
        return f"{still[0]} is named by lora.also, and has not moved"
    return ""


def _infinite(value: object, path: str = "") -> str:
    """Return the path of the first number that is not finite, or nothing."""
    if isinstance(value, dict):
        return next((w for k, v in value.items() if (w := _infinite(v, f"{path}.{k}"))), "")
    if isinstance(value, (list, tuple)):
        return next((w for i, v in enumerate(value) if (w := _infinite(v, f"{path}[{i}]"))), "")
    return path if isinstance(value, float) and not math.isfinite(value) else ""
