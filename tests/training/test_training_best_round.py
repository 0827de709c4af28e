"""The best round is kept, training ends when nothing gets better, in a resumed run too."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from support.federation import LABELS, Federation, scenario
from test_training_export_heads import ran

from clients.owner import OwnerTerms
from clients.owner.scenario import local_scenario
from clients.owner.terms import SCORES
from clients.owner.wishes import wishes
from clients.state_store import ClientStateStore
from fedlora.config import EvaluateConfig, NodeKeys
from fedlora.errors import FedloraError
from fedlora.participation import check_best
from fedlora.report import RunFolder
from fedlora.server.best import BestRound
from fedlora.server.checkpoint import Checkpoints
from fedlora.server.held_out import full_evaluation
from fedlora.site.words import wants_text

METRICS = [0.25, 0.5, 0.375, 0.5, 0.25, 0.75]  # of six rounds
LIMITED = {"privacy-epsilon": 8, "model": "m", "data": "d", "text": "t"}
SHARED = ("head.share=step", "train.rounds=6", "train.steps=1", "train.lr=0.05")


@pytest.fixture
def scripted(monkeypatch):
    """Evaluations whose accuracy is that of the list, by the number of the round."""

    def metric(self, round_, value, **more):
        see(self, round_, None if value is None else METRICS[round_ - 1], **more)

    see = BestRound.see
    monkeypatch.setattr(BestRound, "see", metric)


def states_of(federation: Federation) -> tuple[dict, list[torch.Tensor]]:
    head = federation.server.training.head
    return federation.server.engine.adapter(), [
        p.detach().clone() for p in head.parameters.values()
    ]


def equal(a, b) -> bool:
    adapters = all(torch.equal(a[0][name], b[0][name]) for name in a[0])
    return adapters and all(torch.equal(x, y) for x, y in zip(a[1], b[1], strict=True))


def kept(tiny, records, folder: Path, *overrides: str) -> Federation:
    """Return a federation whose learning rate does not know how many rounds follow."""
    config = scenario(tiny["gpt2"], records, *SHARED, "train.schedule=constant", *overrides)
    wrap = lambda edge: ClientStateStore(edge, folder / "clients" / edge.name).handle  # noqa: E731
    return Federation(config, wrap=wrap)


def test_a_resumed_run_keeps_adapter_and_head_of_the_best_round_bit_for_bit(
    tiny, records, tmp_path, scripted
):
    """Round 2 is best, and the three evaluations after it are no better."""
    plain = states_of(kept(tiny, records, tmp_path / "plain", "train.rounds=2").run())
    checkpoints, evaluated = Checkpoints(tmp_path), []
    for die_after, rounds in ((3, 3), (5, 2), (0, 0)):
        federation = kept(tiny, records, tmp_path, "evaluate.keep=best", "evaluate.patience=3")
        training, state = federation.server.training, checkpoints.latest()

        def after_round(training=training, die_after=die_after) -> None:
            checkpoints.save(training)
            if training.done == die_after:
                raise Killed

        training.after_round = after_round
        restore = partial(checkpoints.restore, training, state) if state else None
        if die_after:
            with pytest.raises(Killed):
                training.run(restore)
        else:
            training.run(restore)
        assert len(federation.recorder.rounds) == rounds
        evaluated += [record["metrics"] for record in federation.recorder.rounds]
    assert (training.kept, training.done, training.best.over) == (2, 5, True)
    assert equal(states_of(federation), plain)
    assert training.evaluated["round"] == 2
    full = full_evaluation(training.evaluated, federation.parts.model.task, LABELS)
    assert full["all"]["metrics"] == evaluated[1]


class Killed(Exception):
    """Stands for the end of all processes."""


def test_lower_is_better_for_perplexity_and_what_is_no_number_never(tiny, records):
    best, engine = BestRound(EvaluateConfig(patience=2)), None
    for round_, metric in enumerate([float("inf"), 9.0, None, 7.0, float("nan"), 8.0], 1):
        assert not best.over
        best.see(round_, metric, higher=False, engine=engine, head=None, evaluated=None)
    assert (best.round, best.metric, best.over) == (4, 7.0, True)


def test_a_runs_folder_has_every_metric_and_who_was_taken_for_whom(tiny, records, tmp_path):
    federation = ran(tmp_path / "run", tiny["llama"], records, "evaluate.scores=true")
    folder = RunFolder(tmp_path / "run")
    found, summary = json.loads(folder.evaluation.read_text()), folder.read_summary()
    matrix = torch.tensor(found["all"]["confusion"])
    assert found["labels"] == list(LABELS) and matrix.shape == (3, 3)
    assert matrix.sum() == found["all"]["rows"] == sum(len(c.held_out) for c in federation.clients)
    own = [torch.tensor(client["confusion"]) for client in found["clients"].values()]
    assert len(own) == 3 and torch.equal(sum(own), matrix)
    right, rows, columns = matrix.diag(), matrix.sum(1), matrix.sum(0)
    occurs = rows + columns > 0
    f1 = (2 * right[occurs] / (rows + columns)[occurs]).mean()
    assert summary["metrics"]["macro_f1"] == pytest.approx(float(f1))
    assert summary["metric"] == pytest.approx(float(right.sum() / matrix.sum()))
    assert folder.read_metrics()[-1]["metrics"] == summary["metrics"]
    areas = [area["value"] for area in found["all"]["auc"].values()]
    assert summary["metrics"]["auc"] == pytest.approx(sum(areas) / 3)
    assert all(0 <= area <= 1 for area in areas) and found["all"]["auc_absent"] == []
    # Of few rows a client may lack a class, which then has no area of its own.
    for client in found["clients"].values():
        lacking = [n for n, row in zip(LABELS, client["confusion"], strict=True) if not sum(row)]
        assert set(lacking) <= set(client["auc_absent"])


def test_a_device_whose_owner_does_not_allow_scores_refuses_the_run_in_a_sentence(tiny, records):
    config = scenario(tiny["gpt2"], records, "evaluate.scores=true", "task.labels=north,south,west")
    keys = {"data": str(records), "model": str(tiny["gpt2"])}
    with pytest.raises(FedloraError, match=r'evaluate.scores asks .* set privacy-scores="true"'):
        local_scenario(config, keys)
    assert local_scenario(config, {**keys, "privacy-scores": "true"}).evaluate.scores
    for keys, allowed in (
        ({}, False),
        ({"privacy-scores": "true"}, True),
        ({"privacy-scores": "true", **LIMITED}, False),
        ({"privacy-scores": "true", "privacy-report": "unprotected", **LIMITED}, True),
    ):
        assert OwnerTerms.of(NodeKeys.read(keys)).allows(SCORES) is allowed
    assert "histograms of held-out scores" in wants_text(wishes(config))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["head.share=personal"], "personal heads stay on their clients .* set head.share to step"),
        (["head.share=step", "train.embedding=true"], "set train.embedding to false"),
        (["head.share=step", "privacy.epsilon=8"], "nothing is evaluated unless evaluate.report"),
    ],
    ids=["personal", "embedding", "private"],
)
def test_a_best_round_that_nobody_can_keep_is_refused(tiny, records, overrides, message):
    config = scenario(tiny["gpt2"], records, "evaluate.keep=best", *overrides)
    with pytest.raises(FedloraError, match=f"evaluate.keep is 'best', and .*{message}"):
        check_best(config)
