"""What an audit found, as a table and in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Result = Mapping[str, Any]
Row = tuple[str, str, str, str]
"""Attack, without noise, with noise, and what bounds it."""

HEADER: Row = ("attack", "without noise", "with noise", "bound")

_LABEL = {
    "norm": "label, norm (AUC)",
    "direction": "label, direction (AUC)",
    "likelihood": "label, likelihood (AUC)",
}
_MEMBERSHIP = {
    "loss": "member, loss (AUC)",
    "calibrated": "member, calibrated (AUC)",
    "likelihood_ratio": "member, likelihood (AUC)",
}


def table_rows(result: Result) -> list[Row]:
    """Return the rows of the table, for the terminal and the report."""
    rows: list[Row] = []

    def add(name: str, *path: str, form: Any = _share, bound: str = "") -> None:
        cells = [form(_get(result, side, *path)) for side in ("without_noise", "with_noise")]
        if any(cells):
            rows.append((name, cells[0], cells[1], bound))

    bound = result.get("label_auc_bound")
    told = "" if bound is None else f"{bound:.3f}"
    for key, name in _LABEL.items():
        add(name, "label", key, form=_auc, bound=told)
    chance = _get(result, "without_noise", "label", "exact", "chance")
    add(
        "label, exact solution",
        "label",
        "exact",
        "accuracy",
        bound="" if chance is None else f"chance {chance:.3f}",
    )
    add("next tokens, gradients", "next_token", "accuracy")
    add("tokens, nearest", "token", "token_accuracy", bound=_covered(result))
    add("tokens, learned", "token", "inverter_accuracy", bound=_covered(result))
    add("inversion, tokens", "gradient_inversion", "token_accuracy")
    add("inversion, labels", "gradient_inversion", "label_accuracy")
    for key, name in _MEMBERSHIP.items():
        add(name, "membership", key, form=_auc)
    for key, name in _MEMBERSHIP.items():
        found = _get(result, "membership_of_run", key)
        if found:
            noisy = result.get("with_noise") is not None
            cells = ("", _auc(found)) if noisy else (_auc(found), "")
            rows.append((f"run's {name}", *cells, ""))
    add("label canaries (AUC)", "canaries", form=_auc)
    epsilon = result.get("epsilon")
    add(
        "label canaries (epsilon)",
        "canaries",
        "epsilon_lower_bound",
        form=_epsilon,
        bound="" if epsilon is None else f"{epsilon:.2f}",
    )
    for found in result.get("mechanism", ()):
        rows.append(
            (
                f"mechanism, sigma {found['sigma']:.3g} (epsilon)",
                "",
                f"{found['epsilon_lower_bound']:.2f}",
                f"{found['epsilon_one_upload']:.2f}",
            )
        )
    return rows


def findings(result: Result) -> list[str]:
    """Say in words what the figures mean."""
    said = [*_labels(result), *_mechanism(result), *_tokens(result), *_membership(result)]
    said += [f"Not run: {text}." for text in result.get("not_run", ())]
    return said


def _labels(result: Result) -> list[str]:
    exact = result["without_noise"].get("label")
    if exact is None:
        text = _get(result, "without_noise", "next_token", "accuracy")
        told = (
            f"Without noise the uploaded gradients give {text or 0:.1%} of the text away, since "
            "the labels of a language model are its next tokens."
        )
        return [] if text is None else [told]
    said = [f"Without noise, uploads tell two labels apart with an AUC of {_best(exact):.3f}."]
    noisy = _get(result, "with_noise", "label")
    if noisy is None:
        return said
    bound = result["label_auc_bound"]
    likely = noisy.get("likelihood") or noisy["norm"]
    said.append(
        f"With noise ({_noise(result)}) the best attack reaches {_best(noisy):.3f}; "
        f"what the uploads tell about one label is bounded by {bound:.3f}, so an AUC above that is "
        f"chance (interval {likely['low']:.3f} to {likely['high']:.3f})."
    )
    if result.get("epsilon") is not None:
        said.append(
            f"These {result['steps']} steps spent epsilon {result['epsilon']:.2f} at delta "
            f"{result['delta']:g}. At epsilon 8 in one upload (sigma 1.28) a guess about a label "
            "has an AUC of up to 0.866, which is a weak promise; sigma 5.6 holds it at 0.6."
        )
    beyond = [
        f"{name} ({found['auc']:.3f}, from {found['low']:.3f})"
        for name, found in noisy.items()
        if "low" in found and found["low"] > bound
    ]
    if beyond:
        said.append(
            f"Warning: {', '.join(beyond)} is beyond the bound by more than its 95% interval; "
            "repeat the audit, and distrust the noise if it stays so."
        )
    return said


def _mechanism(result: Result) -> list[str]:
    found = result.get("mechanism")
    if not found:
        return []
    worst = max(found, key=lambda f: f["epsilon_lower_bound"] - f["epsilon_one_upload"])
    verdict = (
        f"{worst['releases']:,} releases by a client's own code prove an epsilon of at least "
        f"{worst['epsilon_lower_bound']:.2f} for one upload at sigma {worst['sigma']:.3g}, where "
        f"{worst['epsilon_one_upload']:.2f} is accounted for"
    )
    if result["passed"]:
        return [f"{verdict}: the noise is as good as the accountant says."]
    return [f"{verdict}: THE NOISE IS WEAKER THAN THE ACCOUNTANT SAYS."]


def _tokens(result: Result) -> list[str]:
    token = (result.get("with_noise") or result["without_noise"])["token"]
    best = max(token["token_accuracy"], token["inverter_accuracy"])
    depth, sigma = result["cut_depth"], result.get("activation_sigma")
    if sigma is not None:
        first = (
            f"Activations are privatised (privacy.activation_sigma {sigma:g}): {best:.1%} of the "
            f"tokens are recovered from them at cut depth {depth}."
        )
    else:
        first = (
            f"From the activations {best:.1%} of the tokens are recovered at cut depth {depth}. "
            "Noise on gradients does not cover activations: the server has to be trusted with the "
            "inputs unless privacy.activation_sigma is set."
        )
    said = [first]
    name, plain = result["metric_name"], result["without_noise"].get("metric")
    for point in result.get("activation_noise", ()):
        if point["metric"] is not None and plain is not None:
            accuracy = max(point["token_accuracy"], point["inverter_accuracy"])
            epsilon = point["epsilon"]
            cost = "no epsilon worth the name" if epsilon is None else f"epsilon {epsilon:.3g}"
            said.append(
                f"Activations with noise {point['sigma']:g} ({cost}) give {accuracy:.1%} of the "
                f"tokens; {name} after {result['steps']} steps is {point['metric']:.3f} instead of "
                f"{plain:.3f}."
            )
    return said


def _membership(result: Result) -> list[str]:
    best = _get(result, "membership_of_run") or _get(result, "with_noise", "membership")
    best = best or _get(result, "without_noise", "membership")
    if not best:
        return []
    name, found = max(best.items(), key=lambda item: item[1]["auc"])
    whose = "the run's adapter" if result.get("membership_of_run") else "the final adapter"
    told = (
        f"Whether a record was trained on is guessed from {whose} with an AUC of "
        f"{found['auc']:.3f} [{found['low']:.3f}, {found['high']:.3f}] ({name.replace('_', ' ')})."
    )
    if result.get("outsiders_of_another_file"):
        told += (
            " The records that nobody trained on are of data.test, another file, so whatever tells "
            "the files apart counts as membership here."
        )
    return [told]


def _noise(result: Result) -> str:
    sigma = result["sigma"]
    return "randomised labels" if sigma is None else f"sigma {sigma:.3g}"


def _best(label: Mapping[str, Mapping[str, float]]) -> float:
    """Return the AUC of the best attack, whichever way its scores point."""
    return max(max(f["auc"], 1 - f["auc"]) for f in label.values() if "auc" in f)


def _covered(result: Result) -> str:
    return "none" if result.get("activation_sigma") is None else ""


def _get(result: Any, *path: str) -> Any:
    for key in path:
        result = result.get(key) if result is not None else None
    return result


def _auc(found: Mapping[str, float] | None) -> str:
    if not found or not math.isfinite(found["auc"]):
        return ""
    return f"{found['auc']:.3f} [{found['low']:.2f}, {found['high']:.2f}]"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _epsilon(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
