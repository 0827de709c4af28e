"""``fedlora parity`` compares what can be compared, and refuses the rest."""

from __future__ import annotations

import pytest

from fedlora.config import with_overrides
from fedlora.errors import FedloraError
from fedlora.scenarios import find_scenario
from simulations.studies.parity.command import parity
from simulations.studies.parity.trial import Trial, run_trial

UNDIVIDED = [
    *("privacy.epsilon=none", "channel.deliver_every=0", "ranks.strategy=uniform"),
    "ranks.options={}",
]


@pytest.mark.parametrize(
    ("noise", "named"),
    [
        (["privacy.epsilon=8"], r"privacy\.epsilon is 8\.0.*needs privacy\.epsilon=none"),
        (["privacy.epsilon=none", "privacy.sigma=2"], r"privacy\.sigma is 2\.0.*sigma=none"),
    ],
)
def test_a_run_with_noise_is_refused_with_key_and_value(tmp_path, noise, named):
    with pytest.raises(FedloraError, match=named):
        parity("quickstart", set_=noise, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "value", "needed"),
    [
        ("ranks.strategy", "greedy", "uniform, with no options"),
        ("train.embedding", "true", "false"),
        ("lora.dropout", "0.1", "0"),
        ("robust.average", "median", "mean"),
        ("robust.row_clip", "1.0", "0"),
        ("robust.head_clip", "2.0", "0"),
        ("channel.schedule.scheduler", "random_k", "all"),
        ("channel.deliver_every", "1", "0"),
        ("evaluate.patience", "2", "0"),
    ],
)
def test_what_plain_peft_does_not_do_is_refused_with_key_and_value(tmp_path, key, value, needed):
    with pytest.raises(
        FedloraError, match=f"^{key} is {value}, and .*; parity needs {key}={needed}"
    ):
        parity("quickstart", set_=[*UNDIVIDED, f"{key}={value}"], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_ranks_below_r_max_and_a_language_models_head_that_trains_are_refused(tmp_path):
    with pytest.raises(
        FedloraError, match=r"ranks\.strategy is uniform of rank 3, .* lora\.r_max 8 everywhere"
    ):
        parity("quickstart", set_=[*UNDIVIDED, "ranks.options.r=3"], out=tmp_path / "out")
    head = ["task.kind=causal_lm", "head.train=yes"]
    with pytest.raises(FedloraError, match=r"head\.train is yes, .* needs head\.train=no"):
        parity("quickstart", set_=[*UNDIVIDED, *head], out=tmp_path / "out")


@pytest.mark.parametrize("more", [["lora.freeze_a=true"], ["head.train=no"], ["ranks.options.r=8"]])
def test_what_an_undivided_model_can_do_is_the_same(more):
    few = ["train.rounds=1", "train.steps=3", "train.lr=0.05", "federation.clients=2"]
    part = ["partition.kind=iid", "data.max_rows=60", "data.test=", "evaluate.baseline=false"]
    base = with_overrides(find_scenario("quickstart"), [*UNDIVIDED, *few, *part, *more])
    row = run_trial(Trial(0), base)
    assert row["largest_loss_difference_first_20_steps"] < 1e-5
    assert row["split_loss"] == pytest.approx(row["unsplit_loss"], abs=1e-4)
