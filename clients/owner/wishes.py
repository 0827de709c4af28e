"""What a run wants of this device, told to its owner before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedlora.config import Scenario
from fedlora.errors import printable

_MOST_CHARACTERS = 100


def wishes(scenario: Scenario) -> Mapping[str, Any]:
    """Return what a scenario asks of a device, as figures and words of a closed list.

    Parameters
    ----------
    scenario
        As the server sent it. Names of its classes and columns stay out: they may quote data.
    """
    policy, train = scenario.privacy, scenario.train
    wanted: dict[str, Any] = {
        "task": printable(scenario.task.kind, _MOST_CHARACTERS),
        "classes": len(scenario.task.labels),
        "max_length": scenario.task.max_length,
        "client_front": scenario.model.client_front,
        "client_back": scenario.model.client_back,
        "rounds": train.rounds,
        "steps": train.steps,
        "batch_size": train.batch_size,
        "embedding": train.embedding,
        "head": scenario.head.share,
        "report": _counts(scenario),
        "scores": scenario.evaluate.scores,
        "texts": scenario.evaluate.generate,
        "statistics": scenario.ranks.statistics,
    }
    if scenario.link.sends_tokens:
        wanted |= {"tokens": True}
    if scenario.front.share != "personal":
        wanted |= {"front": scenario.front.share}
    if policy.enabled:
        wanted |= {"release": printable(policy.release, _MOST_CHARACTERS)}
        wanted |= {"epsilon": policy.epsilon, "sigma": policy.sigma}
        wanted |= {"delta": policy.delta, "activation_sigma": policy.activation_sigma}
    return wanted


def _counts(scenario: Scenario) -> bool:
    """Tell whether counts over held-out records are asked for; without privacy they always are."""
    return scenario.evaluate.report or not scenario.privacy.enabled
