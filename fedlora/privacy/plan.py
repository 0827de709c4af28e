"""What a scenario's privacy comes to: what can be released, how often, and with how much noise."""

from __future__ import annotations

from dataclasses import dataclass

from fedlora.config import Scenario
from fedlora.errors import FedloraError
from fedlora.privacy.calibration import gradient_sigma, planned_uploads
from fedlora.privacy.statement import Exposure


@dataclass(frozen=True)
class UploadPlan:
    """How often each sample of a client is uploaded at most, and the noise that this takes.

    Attributes
    ----------
    uploads
        Uploads of a sample's gradient that are paid for.
    sigma
        Noise on each of them over the clipping norm.
    """

    uploads: int
    sigma: float


def check_release(scenario: Scenario, *, pools: bool, trains_head: bool) -> None:
    """Refuse a scenario in which something would leave without a mechanism.

    Parameters
    ----------
    scenario
        Under an enabled policy.
    pools
        Whether the server pools, so that a bare linear head follows what it sends.
    trains_head
        Whether heads train.

    Raises
    ------
    FedloraError
        When heads that were trained on labels as they are would leave, or the release does not
        fit the head.
    """
    policy, share = scenario.privacy, scenario.head.share
    if not policy.enabled:
        return
    public = trains_head and share == "step"
    if trains_head and share == "round":
        raise FedloraError(
            "head.share is round, which uploads heads that were trained on labels as they are; "
            "under privacy set head.share to step or personal"
        )
    if policy.release != "full" and not public:
        raise FedloraError(
            f"privacy.release is {policy.release}, which needs a head that the server knows; set "
            "head.share to step, or privacy.release to full"
        )
    if public and not pools:
        raise FedloraError(
            "a shared head under privacy has to follow what the server sends; set "
            "model.client_back to 0 and task.kind to classification, or head.share to personal"
        )
    if public and scenario.evaluate.baseline and policy.release != "logits":
        raise FedloraError(
            f"evaluate.baseline trains the shared head on the same samples, which privacy.release "
            f"{policy.release} would have to pay for twice; set evaluate.baseline to false or "
            "privacy.release to logits"
        )
    if policy.activation_sigma is not None and scenario.train.embedding:
        raise FedloraError(
            "train.embedding changes the activations at every step, so that each would have to be "
            "paid for; set it to false, or remove privacy.activation_sigma"
        )


def upload_plan(scenario: Scenario, rows: int) -> UploadPlan:
    """Return the plan of a client with so many training samples.

    Raises
    ------
    FedloraError
        When delta is too large for them, or the budget is too small for the plan.
    """
    policy, train = scenario.privacy, scenario.train
    policy.check_samples(rows)
    uploads = policy.uploads
    if not uploads and policy.release == "logits":
        uploads = 1  # drawn once, repeated afterwards
    if not uploads:
        uploads = planned_uploads(train.total_steps * train.accumulate, train.batch_size, rows)
    return UploadPlan(uploads, gradient_sigma(policy, uploads, activation_uploads=1))


def exposure(scenario: Scenario, *, trains_head: bool) -> Exposure:
    """Return what leaves clients without a mechanism, for the statement."""
    personal = trains_head and scenario.head.share == "personal"
    return Exposure(
        head="personal" if personal else "public",
        embedding=scenario.train.embedding,
        losses=scenario.evaluate.report,
    )
