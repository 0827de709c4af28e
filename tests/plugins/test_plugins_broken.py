"""A plug-in of each kind that is of no use is named, with what was expected, in one sentence."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fedlora.blame import naming_plugins
from fedlora.channel import build_channel
from fedlora.channel.models.base import ChannelModel
from fedlora.channel.predict import ChannelPredictor
from fedlora.channel.schedule.base import Scheduler
from fedlora.config import (
    ChannelConfig,
    DataConfig,
    PrivacyPolicy,
    RobustConfig,
    ScheduleConfig,
    TaskConfig,
)
from fedlora.errors import FedloraError, ProtocolError
from fedlora.link import Codec, Fp32Codec, create_codec, pack, unpack
from fedlora.link.check import check_codec
from fedlora.privacy.mechanisms import Mechanism, mechanism_of
from fedlora.ranks import RankStrategy
from fedlora.registry import resolve
from fedlora.robust.aggregation import create_average, robust_mean
from fedlora.robust.base import Block, RobustAverage
from fedlora.robust.check import check_average
from fedlora.server.air import Air
from fedlora.split import Family
from fedlora.tasks import (
    Classification,
    Sample,
    Task,
    TaskLoss,
    counts_of,
    head_of,
    loss_of,
    make_task,
)
from fedlora.tasks.plugin import samples_of

BASES = {
    "averages": RobustAverage,
    "channels": ChannelModel,
    "codecs": Codec,
    "families": Family,
    "mechanisms": Mechanism,
    "predictors": ChannelPredictor,
    "schedulers": Scheduler,
    "strategies": RankStrategy,
    "tasks": Task,
}
X = torch.ones(3, 4)


class Answers:
    """Does in every method what a test asks for."""

    answer: object = None

    def _do(self, *_: object, **__: object) -> object:
        if isinstance(self.answer, Exception):
            raise self.answer
        if isinstance(self.answer, float):
            time.sleep(self.answer)
        return self.answer


class BrokenCodec(Answers, Fp32Codec):
    encode = Answers._do


class BrokenDecode(Answers, Fp32Codec):
    decode = Answers._do


class BrokenAverage(Answers, RobustAverage):
    average = Answers._do


class BrokenChannel(Answers, ChannelModel):
    sample = Answers._do


class BrokenScheduler(Answers, Scheduler):
    select = Answers._do


class BrokenTask(Answers, Classification):
    samples = head = loss = measure = Answers._do


class Unmakeable:
    def __init__(self, *_: object, **__: object) -> None:
        raise RuntimeError("no luck\nat all")


MINE = f"{__name__}:"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def one_sentence(error: BaseException, *parts: str) -> None:
    assert "\n" not in str(error)
    for part in parts:
        assert part in str(error)


@pytest.mark.parametrize("kind", BASES)
def test_one_of_another_type_is_named_with_the_class_to_inherit_from(kind):
    for name in ("Answers", "one_sentence"):
        with pytest.raises(FedloraError) as caught:
            resolve(kind, MINE + name, BASES[kind])
        base = BASES[kind]
        inherit = f"name a class that inherits from {base.__module__}.{base.__name__}"
        one_sentence(caught.value, name, inherit)


@pytest.mark.parametrize(
    "make",
    [
        lambda name: create_codec(name, "link.activation"),
        lambda name: create_average(RobustConfig(average=name)),
        lambda name: build_channel(ChannelConfig(model=name), 0),
        lambda name: mechanism_of(PrivacyPolicy(release=name, epsilon=1.0)),
        lambda name: make_task(resolve("tasks", name, Task), TaskConfig(kind=name)),
    ],
    ids=["codec", "average", "channel", "mechanism", "task"],
)
def test_one_that_raises_when_it_is_made_is_named_with_the_line(make, monkeypatch, request):
    base = dict(zip(("codec", "average", "channel", "mechanism", "task"), _bases(), strict=True))
    kind = request.node.callspec.id
    abstract = getattr(base[kind], "__abstractmethods__", ())
    methods = dict.fromkeys(abstract, lambda *_: None)
    own = type("Raising", (Unmakeable, base[kind]), {"__module__": __name__, **methods})
    monkeypatch.setitem(globals(), "Raising", own)
    with pytest.raises(FedloraError) as caught:
        make(f"{MINE}Raising")
    one_sentence(caught.value, "RuntimeError at test_plugins_broken.py, line", "mend")


def _bases() -> tuple[type, ...]:
    return Codec, RobustAverage, ChannelModel, Mechanism, Task


@pytest.mark.parametrize("options", [{"channel": 1}, {"schedule": 1}, {"robust": 1}])
def test_options_that_it_does_not_know_are_named_with_those_that_it_knows(options):
    makers = {
        "channel": lambda: build_channel(ChannelConfig(model="rayleigh", options={"fo": 1}), 0),
        "robust": lambda: create_average(RobustConfig(average="median", options={"fo": 1})),
        "schedule": lambda: Air(
            _scenario(ScheduleConfig("random_k", options={"fo": 1, "clients": 1}))
        ),
    }
    (kind,) = options
    with pytest.raises(FedloraError) as caught:
        makers[kind]()
    one_sentence(caught.value, "options has no option 'fo'; known options: ")


def _scenario(schedule: ScheduleConfig) -> SimpleNamespace:
    train = SimpleNamespace(rounds=1)
    return SimpleNamespace(channel=ChannelConfig(schedule=schedule), seed=0, train=train)


@pytest.mark.parametrize("answer", [None, 3, RuntimeError("boom"), {"": "text"}, X[:, :1]])
def test_a_codec_that_answers_anything_else_is_named(monkeypatch, answer):
    monkeypatch.setattr(Answers, "answer", answer)
    with pytest.raises(FedloraError) as caught:
        pack("activation", X, BrokenCodec())
    one_sentence(caught.value, f"the codec {__name__}:BrokenCodec of activation ")
    with pytest.raises(FedloraError) as caught:
        unpack({"activation": X}, "activation", BrokenDecode(), (3, 4))
    one_sentence(caught.value, f"the codec {__name__}:BrokenDecode of activation ")
    # What raises may have been made to by a peer, who is dropped; the rest is the codec's own.
    assert isinstance(caught.value, ProtocolError) == isinstance(answer, Exception)


@pytest.mark.parametrize("answer", [None, 3, RuntimeError("boom"), [None], [X]])
def test_an_average_that_answers_anything_else_is_named(monkeypatch, answer):
    monkeypatch.setattr(Answers, "answer", answer)
    blocks = [Block(torch.ones(3, 2, 4), torch.ones(3, 2, dtype=torch.bool))]
    with pytest.raises(FedloraError) as caught:
        robust_mean(BrokenAverage(1), blocks, torch.ones(3))
    one_sentence(caught.value, f"the average {__name__}:BrokenAverage ")


@pytest.mark.parametrize("answer", [None, 3, RuntimeError("boom")])
def test_a_channel_and_a_scheduler_that_answer_anything_else_are_named(monkeypatch, answer):
    monkeypatch.setattr(Answers, "answer", answer)
    channel = build_channel(ChannelConfig(model=f"{MINE}BrokenChannel"), 0)
    with pytest.raises(FedloraError) as caught:
        channel.truth(0, 0)
    one_sentence(caught.value, f"channel.model {MINE}BrokenChannel ")
    air = Air(_scenario(ScheduleConfig(f"{MINE}BrokenScheduler")))
    state = build_channel(ChannelConfig(), 0).truth(0, 0)
    with pytest.raises(FedloraError) as caught:
        air._divide(1, {0: state})
    one_sentence(caught.value, f"channel.schedule.scheduler {MINE}BrokenScheduler ")


@pytest.mark.parametrize("answer", [None, 3, RuntimeError("boom"), [3], "text"])
def test_a_task_that_answers_anything_else_is_named(monkeypatch, answer):
    monkeypatch.setattr(Answers, "answer", answer)
    task = make_task(BrokenTask, TaskConfig(kind=f"{MINE}BrokenTask"))
    head, samples = nn.Linear(4, 2), [Sample((1,), 0)]
    for ask in (
        lambda: samples_of(task, [], None, DataConfig()),
        lambda: head_of(task, None, torch.float32, 4, 0),
        lambda: loss_of(task, head, X, samples, sample_mean=False),
        lambda: counts_of(task, head, X, samples),
    ):
        with pytest.raises(FedloraError) as caught:
            ask()
        one_sentence(caught.value, f"task.kind '{MINE}BrokenTask' ")


def test_a_loss_whose_gradient_has_another_shape_is_named_with_both(monkeypatch):
    monkeypatch.setattr(Answers, "answer", TaskLoss(1.0, 1.0, X[:, :1]))
    task = make_task(BrokenTask, TaskConfig(kind=f"{MINE}BrokenTask"))
    with pytest.raises(FedloraError, match=r"shape \(3, 1\) from loss\(\); .* shape \(3, 4\)"):
        loss_of(task, nn.Linear(4, 2), X, [], sample_mean=False)


def test_a_fault_of_our_own_keeps_its_traceback(monkeypatch):
    task = make_task(Classification, TaskConfig())
    with pytest.raises(AttributeError):
        loss_of(task, nn.Linear(4, 2), None, [], sample_mean=False)


def test_an_error_is_of_the_plug_ins_in_the_file_that_it_passed_and_not_of_their_libraries(
    tmp_path, monkeypatch
):
    """One that is a torch module, too, shares the code of every module with us."""
    (tmp_path / "of_mine.py").write_text(
        "from torch import nn\nfrom fedlora.link import Fp32Codec\n"
        "def fail():\n    raise RuntimeError('no luck')\n"
        "class One(nn.Module, Fp32Codec):\n    pass\n"
        "class Other(Fp32Codec):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("fedlora.blame._STRANGERS", {})  # this file is of plug-ins, too
    for name in ("One", "Other"):
        resolve("codecs", f"of_mine:{name}", Codec, key="link.gradient")
    with pytest.raises(RuntimeError, match="cannot be multiplied"), naming_plugins():
        nn.Linear(3, 4)(torch.zeros(2, 5))
    both = "^link.gradient 'of_mine:One' or link.gradient 'of_mine:Other' fails .*no luck"
    with pytest.raises(FedloraError, match=both), naming_plugins():
        importlib.import_module("of_mine").fail()


def test_a_module_whose_error_has_no_text_is_named(tmp_path, monkeypatch):
    (tmp_path / "textless.py").write_text(
        "class Odd(Exception):\n    def __str__(self):\n        raise ValueError('none')\n"
        "raise Odd\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    told = r"importing 'textless' .* fails in line 4 of .*textless.py \(Odd: its text cannot be had"
    with pytest.raises(FedloraError, match=told):
        create_codec("textless:Codec")


def test_one_that_is_slow_is_found_by_its_check(monkeypatch):
    class Slow(Fp32Codec):
        def encode(self, x):
            time.sleep(0.05 if len(x) > 1000 else 0.0)
            return super().encode(x)

    class SlowMedian(resolve("averages", "median", RobustAverage)):
        def average(self, blocks, weights):
            time.sleep(0.05 if blocks[0].values.shape[2] > 1000 else 0.0)
            return super().average(blocks, weights)

    for module in ("fedlora.link.check", "fedlora.robust.check"):
        monkeypatch.setattr(f"{module}._SLOW_S", 0.02)
        monkeypatch.setattr(f"{module}.stretch", lambda: 1.0)
    assert any("as every step waits for them" in text for text in check_codec(Slow))
    assert any("as every step waits for it" in text for text in check_average(SlowMedian))
