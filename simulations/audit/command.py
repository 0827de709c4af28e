"""``fedlora audit``."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from clients.build import SimulatedData
from fedlora.config import Scenario, load_scenario, with_overrides
from fedlora.errors import FedloraError
from fedlora.privacy.plan import upload_plan
from fedlora.privacy.policy import PrivacyPolicy
from fedlora.scenarios import find_scenario
from fedlora.tasks.base import task_class
from simulations.audit import attacks
from simulations.audit.plot import draw
from simulations.audit.tap import observe

NOT_RUN = ("a learned inverter of activations", "gradient inversion of inputs", "shadow models")


def audit(
    target: Annotated[
        str, typer.Argument(help="A run folder, a shipped scenario, or the path of a TOML file.")
    ] = "quickstart-private",
    json_: Annotated[
        Path | None, typer.Option("--json", help="Where the figures go; a plot goes beside them.")
    ] = None,
    steps: Annotated[int, typer.Option(min=2, help="Training steps that are attacked.")] = 20,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a scenario key."),
    ] = None,
) -> None:
    """Attack a scenario's uploads as the server could, with and without its noise.

    The scenario is run twice in this process for some steps, with the noise of the whole run.
    Exits with 1 when the noise is weaker than the accountant says.
    """
    scenario = with_overrides(_find(target), set_ or [])
    result = audit_scenario(scenario, steps)
    folder = Path(target) if (Path(target) / "scenario.toml").exists() else None
    if json_ is None and folder is not None:
        json_ = folder / "audit.json"
    if json_ is not None:
        json_.parent.mkdir(parents=True, exist_ok=True)
        json_.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        draw(result, json_.with_suffix(".png"))
    console = Console()
    console.print(_table(result))
    for sentence in result["findings"]:
        console.print(sentence, highlight=False)
    if json_ is not None:
        console.print(f"Figures: {json_}, plot: {json_.with_suffix('.png')}", highlight=False)
    raise typer.Exit(0 if result["passed"] else 1)


def audit_scenario(scenario: Scenario, steps: int) -> dict[str, Any]:
    """Attack a scenario with and without its noise, and return the figures.

    Parameters
    ----------
    scenario
        A classification scenario whose server pools; without a privacy section it is audited
        without noise alone.
    steps
        Optimiser steps of each of the two runs.

    Raises
    ------
    FedloraError
        When the scenario has no labels to infer.
    """
    if not task_class(scenario.task.kind).pooled or scenario.model.client_back:
        raise FedloraError(
            f"task.kind is {scenario.task.kind!r} with model.client_back "
            f"{scenario.model.client_back}; the audit infers labels from pooled gradients, so give "
            "it a classification scenario with client_back 0"
        )
    policy = scenario.privacy
    short = replace(
        scenario,
        train=replace(scenario.train, rounds=1, steps=steps, warmup_steps=0),
        evaluate=replace(scenario.evaluate, baseline=False, report=False),
    )
    plain = observe(replace(short, privacy=PrivacyPolicy()))
    exact = attacks.two_classes(plain.uploads)
    result: dict[str, Any] = {
        "scenario": scenario.name,
        "steps": steps,
        "classes": [plain.parts.model.task.labels[c] for c in exact.classes],
        "cut_depth": scenario.model.client_front,
        "without_noise": {
            "label": attacks.attack_labels(exact, PrivacyPolicy()),
            "token": attacks.recover(plain),
            "membership": attacks.membership(plain),
        },
        "not_run": list(NOT_RUN),
        "passed": True,
    }
    if policy.enabled:
        sigma, uploads = _least_noise(scenario)
        private = replace(policy, epsilon=None, sigma=sigma, uploads=uploads)
        noisy = observe(replace(short, privacy=private))
        spent = noisy.server.training.summary_fields()["privacy"]
        mechanism = attacks.audit_noise(sigma, policy.clip_norm, policy.delta)
        result |= {
            "release": policy.release,
            "sigma": sigma,
            "uploads_planned": uploads,
            "epsilon": spent["epsilon"],
            "delta": policy.delta,
            "label_auc_bound": float(spent["label_auc_bound"] or 1.0),
            "with_noise": {
                "label": attacks.attack_labels(attacks.two_classes(noisy.uploads), private),
                "token": attacks.recover(noisy),
                "membership": attacks.membership(noisy),
            },
            "mechanism": mechanism,
            "passed": all(found["passed"] for found in mechanism),
        }
        if exact.weights:
            result["label_auc_over_sigma"] = attacks.label_auc_over_sigma(
                exact, policy.release, policy.clip_norm
            )
    result["findings"] = _findings(result)
    return result


def _find(target: str) -> Scenario:
    stored = Path(target) / "scenario.toml"
    return load_scenario(stored) if stored.exists() else find_scenario(target)


def _least_noise(scenario: Scenario) -> tuple[float, int]:
    """Return the least noise of any client's upload, and the most uploads of any sample."""
    data = SimulatedData(scenario, scenario.federation.clients)
    rows = [len(data.rows_of(k)[0]) for k in range(scenario.federation.clients)]
    plans = [upload_plan(scenario, n) for n in rows]
    return min(p.sigma for p in plans), max(p.uploads for p in plans)


def _findings(result: dict[str, Any]) -> list[str]:
    """Say in words what the figures mean."""
    exact = result["without_noise"]
    first, second = result["classes"]
    auc = _best(exact["label"])
    said = [f"Without noise, uploads tell {first} from {second} with an AUC of {auc:.3f}."]
    noisy = result.get("with_noise")
    if noisy is not None:
        bound = result["label_auc_bound"]
        said.append(
            f"With noise (sigma {result['sigma']:.3g}) it is {_best(noisy['label']):.3f}; no "
            f"attack on these uploads can pass {bound:.3f} but by chance."
        )
        worst = max(result["mechanism"], key=lambda found: found["epsilon_lower_bound"])
        said.append(
            f"{worst['releases']:,} releases of the mechanism prove an epsilon of at least "
            f"{worst['epsilon_lower_bound']:.2f} for one upload, where "
            f"{worst['epsilon_one_upload']:.2f} is accounted for."
        )
    token = (noisy or exact)["token"]["token_accuracy"]
    said.append(
        f"From the activations, {token:.1%} of the tokens are recovered at cut depth "
        f"{result['cut_depth']}: noise on gradients does not cover them, and the server has to be "
        "trusted with the inputs unless privacy.activation_sigma is set."
    )
    return said


def _best(label: dict[str, dict[str, float]]) -> float:
    """Return the AUC of the best attack, whichever way its scores point."""
    return max(max(found["auc"], 1 - found["auc"]) for found in label.values())


def _table(result: dict[str, Any]) -> Table:
    noisy = result.get("with_noise")
    table = Table(box=box.SIMPLE, title=f"audit of {result['scenario']}", title_justify="left")
    table.add_column("attack")
    table.add_column("without noise", justify="right")
    table.add_column("with noise", justify="right")
    table.add_column("bound", justify="right")
    for name in result["without_noise"]["label"]:
        bound = f"{result['label_auc_bound']:.3f}" if noisy else ""
        cells = [_auc((part or {}).get("label", {}).get(name)) for part in _parts(result)]
        table.add_row(f"label, {name} (AUC)", *cells, bound)
    cells = [f"{p['token']['token_accuracy']:.3f}" if p else "" for p in _parts(result)]
    table.add_row("token, nearest neighbour (accuracy)", *cells, "none")
    cells = [_auc((part or {}).get("membership")) for part in _parts(result)]
    table.add_row("membership, loss (AUC)", *cells, "")
    for found in result.get("mechanism", ()):
        table.add_row(
            f"mechanism, sigma {found['sigma']:.3g} (epsilon)",
            "infinite",
            f"{found['epsilon_lower_bound']:.2f}",
            f"{found['epsilon_one_upload']:.2f}",
        )
    return table


def _parts(result: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    return result["without_noise"], result.get("with_noise")


def _auc(found: dict[str, float] | None) -> str:
    if not found or not math.isfinite(found["auc"]):
        return ""
    return f"{found['auc']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
