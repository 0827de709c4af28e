"""What a scenario's privacy comes to: what can be released, how often, and with how much noise."""

from __future__ import annotations

from fedlora.config import PrivacyPolicy, Scenario
from fedlora.errors import FedloraError
from fedlora.privacy.mechanisms import (
    Mechanism,
    ReleasePlan,
    blaming,
    mechanism_class,
    mechanism_of,
)
from fedlora.privacy.statement import Exposure


def plan_release(
    mechanism: Mechanism,
    scenario: Scenario,
    rows: int,
    classes: int,
    *,
    pools: bool,
    trains_head: bool,
) -> ReleasePlan:
    """Return the plan of a client with so many training samples.

    Parameters
    ----------
    mechanism, scenario
        The mechanism of the scenario's policy.
    rows, classes
        Training samples, and classes (0 where the task has none).
    pools, trains_head
        See ``check_release``.

    Raises
    ------
    FedloraError
        When something would leave without a mechanism, there is one class alone, delta is too large
        for the samples, or the budget is too small for the plan.
    """
    _check_mechanism(mechanism, scenario, pools=pools, trains_head=trains_head)
    check_classes(scenario, classes)
    check_samples(scenario.privacy, rows)
    with blaming(mechanism):
        plan: object = mechanism.plan(scenario, rows)
        if isinstance(plan, ReleasePlan):
            return plan
        raise TypeError(f"plan returned {plan!r:.80} in place of a ReleasePlan")


def check_release(scenario: Scenario, *, pools: bool, trains_head: bool) -> None:
    """Refuse a scenario in which something would leave without its mechanism.

    Parameters
    ----------
    scenario
        The run's; with privacy off there is no mechanism.
    pools
        Whether the server pools, so that a bare linear head of classes follows what it sends.
    trains_head
        Whether heads train.

    Raises
    ------
    FedloraError
        When heads that were trained on labels as they are would leave, the release does not fit
        the head, or blocks on the client mix the tokens that are noised one by one.
    """
    mechanism = mechanism_of(scenario.privacy)
    if mechanism is None:
        mechanism_class(scenario.privacy.release)  # a misspelt one is refused here, too
    else:
        _check_mechanism(mechanism, scenario, pools=pools, trains_head=trains_head)


def _check_mechanism(
    mechanism: Mechanism, scenario: Scenario, *, pools: bool, trains_head: bool
) -> None:
    """Refuse a mechanism that does not fit the run; see ``check_release``."""
    policy, share = scenario.privacy, scenario.head.share
    with blaming(mechanism):
        mechanism.check(scenario)
    _check_unit(scenario, mechanism)
    if policy.activation_sigma is not None and scenario.train.embedding:
        raise FedloraError(
            "train.embedding changes the activations at every step, so that each would have to be "
            "paid for; set it to false, or remove privacy.activation_sigma"
        )
    if scenario.front.share != "personal":
        raise FedloraError(
            f"front.share is {scenario.front.share}, which uploads what was computed from inputs "
            "as they are; under privacy set front.share to personal"
        )
    if not mechanism.noises_gradients:
        return
    public = trains_head and share == "step"
    if trains_head and share == "round":
        raise FedloraError(
            "head.share is round, which uploads heads that were trained on labels as they are; "
            "under privacy set head.share to step or personal"
        )
    if mechanism.needs_head and not public:
        raise FedloraError(
            f"privacy.release is {policy.release}, which needs a head that the server knows; set "
            "head.share to step, or privacy.release to full"
        )
    if public and not pools:
        raise FedloraError(
            "a shared head under privacy has to follow what the server sends; set "
            "model.client_back to 0 and task.kind to classification, or head.share to personal"
        )
    if public and scenario.evaluate.baseline and not mechanism.repeats:
        raise FedloraError(
            f"evaluate.baseline trains the shared head on the same samples, which privacy.release "
            f"{policy.release} would have to pay for twice; set evaluate.baseline to false or "
            "privacy.release to logits"
        )
    if policy.spread == "channel" and mechanism.repeats:
        raise FedloraError(
            f"privacy.spread is channel, but privacy.release {policy.release} is paid once for "
            "each sample, so there is nothing to spread; set privacy.spread to even or another "
            "release"
        )
    if policy.uplink == "analog":
        _check_analog(scenario)


def check_samples(policy: PrivacyPolicy, rows: int) -> None:
    """Refuse a delta that would let one of a client's samples leak whole.

    Raises
    ------
    FedloraError
        When delta is not below 1 / rows.
    """
    if policy.delta * rows >= 1:
        raise FedloraError(
            f"privacy.delta is {policy.delta:g} with {rows} samples; set it below {1 / rows:g}"
        )


def check_classes(scenario: Scenario, classes: int) -> None:
    """Refuse to hide the label of samples that all have the same, or that have none.

    Parameters
    ----------
    scenario
        Under an enabled policy.
    classes
        Number of classes; 0 where the task has none.

    Raises
    ------
    FedloraError
        When there is one, labels are to be randomised and there is none, or there are more than
        the mechanism takes.
    """
    policy = scenario.privacy
    mechanism = mechanism_class(policy.release)
    if mechanism.most_classes and classes > mechanism.most_classes:
        raise FedloraError(
            f"there are {classes:,} classes, and privacy.release {policy.release} takes "
            f"{mechanism.most_classes:,} at most, as it holds their number squared; set it to "
            "labels or full, or name fewer classes in task.labels"
        )
    if classes == 0 and mechanism.needs_classes:
        raise FedloraError(
            f"privacy.release is {policy.release}, and task.kind {scenario.task.kind} has no "
            "labels to randomise, as what it learns follows from the text; set privacy.release to "
            "full"
        )
    if classes == 1:
        raise FedloraError(
            "the data has 1 class, so there is nothing to learn and no label to keep private; "
            "name all classes in task.labels, or add records of another"
        )


def _check_unit(scenario: Scenario, mechanism: Mechanism) -> None:
    """Refuse ``unit = "token"`` where one token moves more than its own row of an upload.

    Attention mixes tokens, forwards and backwards. In blocks on the client one token therefore
    moves all later activations, and one token's label the gradients of all earlier rows (one
    class label those of every row, as the server pools only what leaves the last block). Noise
    that is counted for one row of norm C does not cover that.
    """
    policy, model = scenario.privacy, scenario.model
    if policy.unit != "token":
        return
    if mechanism.noises_gradients and model.client_back > 0:
        raise FedloraError(
            f"privacy.unit is token, but model.client_back is {model.client_back} and attention in "
            "these blocks spreads one label over other tokens' gradients; set privacy.unit to "
            "sample or model.client_back to 0"
        )
    if policy.activation_sigma is not None and model.client_front > 0:
        raise FedloraError(
            f"privacy.unit is token, but model.client_front is {model.client_front} and attention "
            "in these blocks spreads one token over later activations; set privacy.unit to sample "
            "or model.client_front to 0, or remove privacy.activation_sigma"
        )


def _check_analog(scenario: Scenario) -> None:
    """Refuse what would make the receiver's noise uncertain, or correct it."""
    channel, report = scenario.channel, scenario.channel.report
    if scenario.link.gradient != "fp32":
        raise FedloraError(
            f"link.gradient is {scenario.link.gradient}, but privacy.uplink analog sends gradients "
            "uncoded; set link.gradient to fp32"
        )
    late = report.delay_rounds or report.delay_s or channel.predict
    if report.error_db or late or channel.coherence_s:
        raise FedloraError(
            "privacy.uplink analog has to know the channel exactly to bound the receiver's SNR; "
            "set channel.report.error_db, delay_rounds, delay_s and channel.coherence_s to 0, and "
            "no channel.predict"
        )


def exposure(scenario: Scenario, *, trains_head: bool) -> Exposure:
    """Return what leaves clients without a mechanism, for the statement."""
    # heads that learn from randomised labels carry no more than these
    mechanism = mechanism_of(scenario.privacy)
    exact = mechanism is None or mechanism.noises_gradients
    personal = exact and trains_head and scenario.head.share == "personal"
    return Exposure(
        head="personal" if personal else "public",
        embedding=scenario.train.embedding,
        losses=scenario.evaluate.report,
        statistics=scenario.ranks.statistics,
    )
