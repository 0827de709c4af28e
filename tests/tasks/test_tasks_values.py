"""Tasks whose inputs are no tokens: a plug-in names its front and its samples, and that is all."""

from __future__ import annotations

import math
import random
import time
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from support.federation import Federation, relative
from support.owner_device import Device, attack
from support.patience import patient
from support.values import UnsplitValues, scenario, without_tokenizer

from clients.build import load_parts
from fedlora import registry
from fedlora.check import check_scenario
from fedlora.commands.doctor_server import examine_model
from fedlora.commands.slice import slice_model
from fedlora.config import with_overrides
from fedlora.errors import FedloraError
from fedlora.link import create_codec, messages as m, pack
from fedlora.preview.rows import view_rows
from fedlora.preview.sizes import predict_sizes
from fedlora.registry import use_python_path
from fedlora.scenarios import find_scenario
from fedlora.server.run import ServerRun
from fedlora.split import Checkpoint, has_tokenizer
from fedlora.tasks import ErrorCounts
from simulations.in_process import Record

OWN = """
import torch
from torch import nn
from fedlora.tasks import ErrorCounts, Sample, Task, TaskLoss

class Sensors(Task):
    pooled, trains_head, tokens = True, True, False
    def samples(self, records, tokenizer, data):
        assert tokenizer is None
        made = []
        for place, record in enumerate(records):
            values = torch.tensor([[float(record[f"x{i}"])] * 2 for i in range(4)])
            made.append(Sample((), torch.tensor([float(record["y"])]), place, values=values))
        return made
    def front(self, checkpoint, dtype, width, seed):
        torch.manual_seed(seed)
        return nn.Linear(2, width)
    def head(self, checkpoint, dtype, width, seed):
        torch.manual_seed(seed)
        return nn.Linear(width, 1)
    def loss(self, head, z, samples, *, sample_mean):
        z = z.detach().requires_grad_()
        loss = (head(z) - torch.stack([s.target for s in samples])).square().sum()
        loss.backward()
        return TaskLoss(loss.item(), float(len(samples)), z.grad)
    @torch.no_grad()
    def measure(self, head, z, samples):
        wanted = torch.stack([s.target for s in samples])
        return ErrorCounts.of(head(z), wanted, float((head(z) - wanted).square().sum()))
    def read_counts(self, value):
        return ErrorCounts.from_dict(value)
"""


@pytest.fixture(scope="module")
def bare(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone without any file of a tokenizer."""
    return without_tokenizer(checkpoints["llama"], tmp_path_factory.mktemp("bare") / "llama")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder outside the repository, with the task and its floats."""
    (tmp_path / "sensors.py").write_text(OWN)
    rng, lines = random.Random(0), ["x0,x1,x2,x3,y"]
    for _ in range(40):
        x = [rng.gauss(0, 1) for _ in range(4)]
        lines.append(",".join(f"{v:.5f}" for v in [*x, x[0] - 0.5 * x[3] + 0.1]))
    (tmp_path / "floats.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def own(model: Path, folder: Path, *overrides: str) -> Any:
    task = [f"python_path={folder}", "task.kind=sensors:Sensors"]
    return scenario(model, *task, f"data.train={folder / 'floats.csv'}", *overrides)


def squared(head: Any, states: torch.Tensor, samples: Any) -> torch.Tensor:
    return (head(states.mean(1)) - torch.stack([s.target for s in samples])).square().sum()


@pytest.mark.parametrize("embedding", ["false", "true"])
def test_a_task_of_floats_from_a_folder_trains_as_the_undivided_model(bare, folder, embedding):
    config = own(bare, folder, f"train.embedding={embedding}")
    check_scenario(config)
    federation = Federation(config)
    unsplit = UnsplitValues(federation, squared)
    expected = unsplit.run()
    federation.run()

    assert federation.recorder.losses() == pytest.approx(expected, rel=1e-5)
    for name, factor in federation.server.engine.adapter().items():
        assert relative(factor, unsplit.factors[name].detach()) < 1e-4, name
    for client, front, head in zip(federation.clients, unsplit.fronts, unsplit.heads, strict=True):
        for mine, other in ((client.model.front.embedding, front), (client.head.module, head)):
            for a, b in zip(mine.parameters(), other.parameters(), strict=True):
                assert relative(a.detach(), b.detach()) < 1e-5
    assert federation.recorder.rounds[-1]["metric_name"] == "nmse"


def test_its_rows_and_sizes_are_shown_without_a_tokenizer(bare, folder):
    config, checkpoint = own(bare, folder, "train.embedding=true"), Checkpoint(bare)
    check_scenario(config)
    rows = view_rows(config, checkpoint)
    assert rows is not None and rows.labels == [] and rows.quartiles() == (4.0,) * 5
    assert len(rows.shown[0].tokens) == 4 and rows.shown[0].target == ""
    sizes = predict_sizes(config, checkpoint, rows.load(config.task.max_length), 0)
    front, head, norm = 2 * 32 + 32, 32 + 1, 32
    assert sizes.device_weights == 4 * norm + 16 * (front + head)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["task.max_length=3"], r"record 1 of .*floats.csv has a sequence of 4 places.*raise that"),
        (["ranks.statistics=true"], r"ranks\.statistics = true needs texts, and task\.kind is"),
        (["privacy.epsilon=8", "head.share=step"], "shared head under privacy.*to personal"),
        (["privacy.epsilon=8", "privacy.release=labels"], "no labels to randomise"),
        (["partition.kind=dirichlet"], "partition.kind to iid"),
    ],
)
def test_what_a_task_of_floats_does_not_have_is_refused(bare, folder, overrides, said):
    with pytest.raises(FedloraError, match=said) as caught:
        check_scenario(own(bare, folder, *overrides))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("nn.Linear(2, width)", "nn.Linear(2, 5)", r"made shape \(4, 5\) in place of.*\(4, 32\)"),
        ("nn.Linear(2, width)", "lambda x: None", "returns a function from front"),
        ("def front(", "def other(", r"has no front; let its front\(\) return a module"),
        ('float(record[f"x{i}"])', "float('nan')", "record 1 of .* has NaN or infinity"),
        ("values=values", "values=values.double()", r"no fp32 tensor of shape .* torch.float64"),
        (", values=values", "", "no fp32 tensor of shape .* but none"),
    ],
)
def test_a_broken_task_of_floats_is_refused_before_a_run(bare, folder, old, new, said):
    file = folder / "sensors.py"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(FedloraError, match=said) as caught:
        check_scenario(own(bare, folder))
    assert "\n" not in str(caught.value)


def test_a_front_without_weights_is_not_trained(bare, folder):
    file = folder / "sensors.py"
    file.write_text(file.read_text().replace("nn.Linear(2, width)", "nn.ZeroPad1d((0, width - 2))"))
    check_scenario(own(bare, folder))
    with pytest.raises(FedloraError, match="has no weights that could train; set it to false"):
        check_scenario(own(bare, folder, "train.embedding=true"))


def test_the_example_learns(bare):
    config = scenario(
        bare,
        "task.kind=simulations.examples.readings:Readings",
        "train.embedding=true",
        "train.steps=12",
        "train.batch_size=16",
    )
    federation = Federation(config).run()
    first, last = (r["metrics"]["nmse"] for r in federation.recorder.rounds)
    assert last < first and last < 0.8


@pytest.mark.e2e
def test_the_example_runs_by_its_documented_command(tmp_path):
    import simulations.examples.readings as example
    from fedlora.commands.run import run_simulation

    assert example.__doc__ is not None
    command = example.__doc__.replace("\\\n", " ").partition("fedlora run quickstart")[2].split()
    overrides = [word for word in command if word != "--set"]
    few = ["train.rounds=1", "train.steps=2", "federation.clients=2", "compute.threads=1"]
    with_overrides(find_scenario("quickstart"), overrides)
    started = time.monotonic()
    run_simulation("quickstart", tmp_path / "out", [*overrides, *few])
    assert time.monotonic() - started < patient(120)
    assert (tmp_path / "out" / "metrics.jsonl").is_file()


def test_two_kinds_of_nmse_add_up_and_come_back_from_a_wire():
    wanted = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    found = torch.tensor([[3.0, 3.0], [0.0, 0.0]])
    whole = ErrorCounts.of(found, wanted, 2.0)
    parts = ErrorCounts.of(found[:1], wanted[:1], 1.0) + ErrorCounts.of(found[1:], wanted[1:], 1.0)
    assert parts == whole == ErrorCounts.from_dict(whole.to_dict())
    values = {metric.name: metric.value for metric in whole.metrics()}
    assert values == {
        "nmse": 2 / 26,
        "loss": 1.0,
        "nmse_mean": pytest.approx((1 / 25 + 1) / 2),
        "rmse": pytest.approx(math.sqrt(2 / 4)),
    }
    with pytest.raises(FedloraError, match="0 throughout"):
        ErrorCounts.of(found, torch.zeros(2, 2), 0.0)


def test_a_package_for_it_holds_no_vocabulary_and_serves(bare, folder, tmp_path):
    package = tmp_path / "package"
    config = own(package, folder, "train.rounds=1")
    use_python_path(str(folder))
    slice_model(str(bare), package, 0, 0, task="sensors:Sensors", overwrite=False)
    assert set(Checkpoint(package).entries) == {"model.norm.weight"}
    assert not has_tokenizer(package)
    assert [f for f in examine_model(str(package)) if f.mend] == []
    parts = load_parts(config)
    assert parts.identity.tokenizer_digest == "" and parts.tokenizer is None
    server = ServerRun(own(bare, folder), Record())
    assert server.identity == parts.identity
    with pytest.raises(FedloraError, match="tokenizer"):
        slice_model(str(bare), tmp_path / "texts", 0, 0, task="", overwrite=False)


def test_a_device_takes_part_in_it_where_it_is_registered(bare, folder, tmp_path, monkeypatch):
    known = registry._registered
    entry = {"sensors": EntryPoint("sensors", "sensors:Sensors", "fedlora.tasks")}
    monkeypatch.setattr(registry, "_registered", lambda k: entry if k == "tasks" else known(k))
    monkeypatch.syspath_prepend(str(folder))
    device = Device(
        tmp_path, data=str(folder / "floats.csv"), model=str(bare), privacy_personal_head="true"
    )
    asked, sent = own(bare, folder, "task.kind=sensors", "privacy.epsilon=8"), list[Any]()

    def serve(ask: Any, hello: Any) -> None:
        ask(m.PHASE)
        ask(m.ROUND, {"round": 1})
        sent.extend([hello, ask(m.BATCH)])
        z = pack("representation", torch.zeros(3, 32), create_codec("fp32"))
        sent.append(ask(m.STEP, {"step": 0, "update": True, "next": False}, z))

    for key in ("text", "label", "privacy-epsilon"):
        del device.keys[key]
    told = attack(device, monkeypatch, replace(asked, python_path=""), serve)
    assert told == {} and sent[0].fields["tokenizer_digest"] == ""
    assert sent[1].tensors["lengths"].tolist() == [4, 4, 4]
    assert sent[2].fields["sigma"] > 0  # what leaves of the targets is noised
    named = own(bare, folder)
    assert named.task.kind == "sensors:Sensors"
    told = attack(device, monkeypatch, named, serve)
    assert told["reason"] == "plugins"  # no server says which folder code comes from
