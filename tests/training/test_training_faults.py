"""A client that is lost or answers wrongly leaves with a reason; the others' result stays valid."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.federation import Federation, Handler, relative, scenario
from support.unsplit import Unsplit

from clients.edge_client import EdgeClient
from fedlora.channel import ChannelState
from fedlora.channel.rate import Shannon
from fedlora.channel.schedule.base import Scheduler
from fedlora.errors import ClientLost, FedloraError, NoClientsLeft
from fedlora.link import Frame, messages as m

Change = Callable[[Frame], Frame]
BAD = "1"


def tampered(kind: str, change: Change, *, client: str = BAD, nth: int = 1) -> Any:
    """Alter the answers of one client (or of all, ``*``) to the ``nth`` and later requests."""

    def wrap(edge: EdgeClient) -> Handler:
        if client not in (edge.name, "*"):
            return edge.handle
        asked = 0

        def handle(frame: Frame) -> Frame:
            nonlocal asked
            reply = edge.handle(frame)
            asked += frame.kind == kind
            return change(reply) if frame.kind == kind and asked >= nth else reply

        return handle

    return wrap


def tensors(**changes: Callable[[torch.Tensor], torch.Tensor | None]) -> Change:
    """Replace tensors by name (a double underscore stands for a dot); None leaves one out."""

    def change(frame: Frame) -> Frame:
        kept = dict(frame.tensors)
        for name, function in changes.items():
            new = function(kept.pop(name.replace("__", ".")))
            if new is not None:
                kept[name.replace("__", ".")] = new
        return dataclasses.replace(frame, tensors=kept)

    return change


def fields(**changes: Any) -> Change:
    return lambda frame: dataclasses.replace(frame, fields={**frame.fields, **changes})


def kind(name: str) -> Change:
    return lambda frame: dataclasses.replace(frame, kind=name)


def leave(frame: Frame) -> Frame:
    return Frame(m.LEAVE, frame.client, frame.seq, {"reason": "the battery is empty"})


def lose(frame: Frame) -> Frame:
    raise ClientLost("client 1 went out of reach")


def with_value(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def put(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[0, 0] = value
        return x

    return put


def repeat(times: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: torch.cat([x] * times)


def counts(**changes: Any) -> Change:
    def change(frame: Frame) -> Frame:
        if frame.kind != m.METRICS:
            return frame
        return fields(counts={**frame.fields["counts"], **changes})(frame)

    return change


PRIVATE = [
    "privacy.sigma=2.0",
    "privacy.release=logits",
    "evaluate.report=true",
]
FOUR_CLASSES = [[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
FAULTS: dict[str, tuple[str, Change, str]] = {
    "link lost": (m.STEP, lose, "out of reach"),
    "leaves": (m.STEP, leave, "battery is empty"),
    "gradient NaN": (m.STEP, tensors(gradient=with_value(math.nan)), "NaN"),
    "gradient infinite": (m.STEP, tensors(gradient=with_value(math.inf)), "infinity"),
    "gradient too long": (m.STEP, tensors(gradient=repeat(2)), "expected"),
    "gradient transposed": (m.STEP, tensors(gradient=lambda x: x.T.contiguous()), "expected"),
    "gradient in double precision": (m.STEP, tensors(gradient=torch.Tensor.double), "float64"),
    "gradient missing": (m.STEP, tensors(gradient=lambda x: None), "parts"),
    "another kind": (m.STEP, kind(m.READY), "gradient"),
    "weight zero": (m.STEP, fields(weight=0), "weight"),
    "weight negative": (m.STEP, fields(weight=-3.0), "weight"),
    "weight beyond the rows": (m.STEP, fields(weight=4), "weight"),
    "weight beyond floats": (m.STEP, fields(weight=10**400), "weight"),
    "weight a word": (m.STEP, fields(weight="many"), "weight"),
    "weight true": (m.STEP, fields(weight=True), "weight"),
    "loss beyond floats": (m.STEP, fields(loss=10**400), "loss"),
    "loss a list": (m.STEP, fields(loss=[1.0]), "loss"),
    "head gradient NaN": (
        m.STEP,
        tensors(head_gradient__weight=with_value(math.nan)),
        "head_gradient",
    ),
    "head gradient missing": (m.STEP, tensors(head_gradient__weight=lambda x: None), "head_grad"),
    "head gradient too wide": (m.STEP, tensors(head_gradient__weight=repeat(2)), "head_gradient"),
    "too many rows": (
        m.STEP,
        tensors(activation=repeat(2), lengths=repeat(2), ids=repeat(2), fresh=repeat(2)),
        "exceeds the batch",
    ),
    "no rows": (m.STEP, tensors(lengths=lambda x: x[:0]), "rows"),
    "an empty row": (m.STEP, tensors(lengths=lambda x: x * 0), "tokens"),
    "a row too long": (m.STEP, tensors(lengths=lambda x: x + 100), "max_length"),
    "lengths that do not add up": (m.STEP, tensors(lengths=lambda x: (x - 1).clamp(1)), "expected"),
    "a length too few": (m.STEP, tensors(lengths=lambda x: x[:-1]), "3 are said to be new"),
    "lengths in 64 bits": (m.STEP, tensors(lengths=torch.Tensor.long), "int32"),
    "lengths missing": (m.STEP, tensors(lengths=lambda x: None), "lengths"),
    "activation NaN": (m.STEP, tensors(activation=with_value(math.nan)), "NaN"),
    "another report": (m.ROUND, fields(channel={"up_snr_db": "loud"}), ""),
    "report is no report": (m.ROUND, kind(m.READY), "report"),
    "counts of other classes": (m.EVAL, counts(confusion=FOUR_CLASSES), "classes"),
    "counts of more rows": (m.EVAL, counts(confusion=[[9] * 3] * 3), "81 rows"),
    "counts negative": (m.EVAL, counts(confusion=[[-1, 1, 1]] * 3), "count"),
    "counts without loss": (m.EVAL, fields(counts={"confusion": [[4]]}), "loss"),
    "counts missing": (m.EVAL, fields(counts=None), "confusion"),
    "loss sum negative": (m.EVAL, counts(loss=-1.0), "loss"),
}


def channel(**changes: Any) -> Change:
    return lambda frame: fields(channel={**frame.fields["channel"], **changes})(frame)


TOTAL = "channel.schedule.total_bandwidth_hz=3e6"
DELIVERY = "channel.deliver_every=1"
LYAPUNOV = "channel.schedule.options={mean_delay_s = 1.0, min_clients = 3}"
UNBOUNDED: dict[str, tuple[list[str], str, Change, str]] = {
    "rho": (PRIVATE, m.STEP, fields(rho=1.7e308), "rho"),
    "epsilon of labels": (PRIVATE, m.STEP, fields(label_epsilon=1.7e308), "label_epsilon"),
    "loss": ([], m.STEP, fields(loss=1.7e308), "loss"),
    "rate": ([DELIVERY], m.ROUND, channel(down_rate_bps=1.7e308), "down_rate_bps"),
    "bandwidth": ([TOTAL], m.ROUND, channel(bandwidth_hz=5e-324), "bandwidth_hz"),
    "SNR": ([TOTAL], m.ROUND, channel(up_snr_db=1.7e308), "up_snr_db"),
    "no SNR": ([TOTAL], m.ROUND, channel(up_snr_db=None), "SNR of None dB up"),
    "no SNR, own bandwidth": ([], m.ROUND, channel(up_snr_db=None), "SNR of None dB up"),
    "derived": ([TOTAL], m.ROUND, channel(derived=True), "derived True"),
    "SNR at its bound": ([TOTAL], m.ROUND, channel(up_snr_db=1e3, bandwidth_hz=1e13), "1000"),
}


@pytest.mark.parametrize("fault", UNBOUNDED)
def test_run_goes_on_without_a_client_whose_figures_lead_nowhere(tiny, records, fault):
    overrides, request, change, reason = UNBOUNDED[fault]
    config = scenario(tiny["gpt2"], records, "head.share=step", "train.steps=2", *overrides)
    federation = Federation(config, wrap=tampered(request, change)).run()
    lost = federation.server.cohort.lost
    assert list(lost) == [BAD]
    assert reason in lost[BAD]
    assert len(federation.recorder.rounds) == 2
    assert set(federation.recorder.rounds[-1]["clients"]) == {"0", "2"}


class Divides(Scheduler):
    """Gives some clients a bandwidth, whoever asks."""

    def __init__(self, *, division: dict[str, float], **common: Any) -> None:
        super().__init__(**common)
        self._division = {int(client): hz for client, hz in division.items()}

    def select(self, round: int, reports: Any, loads: Any) -> dict[int, float]:
        return self._division


@pytest.mark.parametrize(
    ("division", "reason"),
    [
        ("{}", "chose none of 3 clients for round 1; let it choose one at least"),
        ("{7 = 1e6}", "chose none of 3 clients for round 1"),
        ("{0 = 1e6, 1 = 0.0}", "gives client 1, in Hz, is 0.0"),
        ("{0 = nan}", "gives client 0, in Hz, is nan"),
        ("{0 = 2e6, 1 = 2e6}", "divides 4e+06 Hz among 2 clients, and channel.schedule.total_band"),
    ],
)
def test_a_scheduler_that_chooses_nobody_or_divides_nonsense_is_named(
    tiny, records, division, reason
):
    overrides = [
        "channel.schedule.scheduler=test_training_faults:Divides",
        f"channel.schedule.options={{division = {division}}}",
        "channel.schedule.total_bandwidth_hz=3e6",
    ]
    federation = Federation(scenario(tiny["gpt2"], records, *overrides))
    with pytest.raises(FedloraError, match=r"channel\.schedule\.scheduler test_tra") as found:
        federation.run()
    assert reason in str(found.value)
    assert not isinstance(
        found.value, NoClientsLeft
    )  # with devices the round would begin again forever


def test_a_share_below_a_hertz_is_one(tiny, records):
    overrides = [
        "channel.schedule.scheduler=test_training_faults:Divides",
        "channel.schedule.options={division = {0 = 1e-9, 1 = 1e99, 2 = 1e6}}",
    ]
    federation = Federation(scenario(tiny["gpt2"], records, *overrides)).run()
    shares = [federation.server.air.row(2, client).bandwidth_hz for client in "012"]
    assert shares == [1.0, 1e13, 1e6]


@pytest.mark.parametrize("rate", [1e-30, 1e15])
def test_the_rounds_of_all_end_whatever_rate_one_client_may_report(tiny, records, rate):
    overrides = ["channel.schedule.scheduler=lyapunov", LYAPUNOV, DELIVERY]
    config = scenario(tiny["gpt2"], records, "head.share=step", "train.steps=2", *overrides)
    change = channel(up_rate_bps=rate, down_rate_bps=rate)
    federation = Federation(config, wrap=tampered(m.ROUND, change)).run()
    assert not federation.server.cohort.lost
    for record in federation.recorder.rounds:
        assert set(record["clients"]) == {"0", "1", "2"}
        assert math.isfinite(record["air_seconds"])


def measuring(state: ChannelState) -> Callable[[EdgeClient], Handler]:
    """Let every client report one state."""

    def wrap(edge: EdgeClient) -> Handler:
        edge.report = lambda round_: state
        return edge.handle

    return wrap


def test_a_measured_link_has_the_scenarios_bandwidth_whatever_its_client_says(tiny, records):
    overrides = ["channel.model=measured", "channel.options={equivalent_snr = true}", TOTAL]
    config = scenario(tiny["gpt2"], records, "train.steps=1", *overrides)
    wrap = measuring(ChannelState(900.0, 900.0, 1e13, 2e6, 3e6, derived=True))
    federation = Federation(config, wrap=wrap).run()
    for own in federation.recorder.rounds[-1]["clients"].values():
        assert own["rate_bps"] == pytest.approx(3e6)
        assert own["snr_db"] == pytest.approx(Shannon().snr_db(3e6, 1e6))


def test_a_measured_link_without_snr_cannot_be_given_a_share_and_the_mend_is_named(tiny, records):
    total = "channel.schedule.total_bandwidth_hz=2e6"
    config = scenario(tiny["gpt2"], records, "channel.model=measured", total)
    wrap = measuring(ChannelState(None, None, 1e6, 2e6, 3e6, derived=True))
    federation = Federation(config, wrap=wrap)
    with pytest.raises(FedloraError, match=r"channel\.options\.equivalent_snr to true"):
        federation.run()
    assert not federation.server.cohort.lost


@pytest.mark.parametrize("fault", FAULTS)
def test_run_goes_on_without_a_client_that_answers_wrongly(tiny, records, fault):
    request, change, reason = FAULTS[fault]
    config = scenario(tiny["gpt2"], records, "head.share=step", "train.steps=2")
    federation = Federation(config, wrap=tampered(request, change)).run()
    lost = federation.server.cohort.lost
    assert list(lost) == [BAD]
    assert reason in lost[BAD]
    assert len(lost[BAD]) < 300
    assert len(federation.recorder.rounds) == 2
    last = federation.recorder.rounds[-1]
    assert set(last["clients"]) == {"0", "2"}
    assert math.isfinite(last["loss"])
    assert last["metric"] is not None
    for factor in federation.server.engine.adapter().values():
        assert torch.isfinite(factor).all()


def test_endless_evaluation_ends(tiny, records):
    """A client that always has another batch of held-out rows is stopped at what it told."""
    config = scenario(tiny["gpt2"], records, "train.steps=1", "train.rounds=1")
    saved: list[Frame] = []

    def again(reply: Frame) -> Frame:
        saved.append(reply)
        return dataclasses.replace(saved[0], seq=reply.seq)

    def wrap(edge: EdgeClient) -> Handler:
        opened = tampered(m.EVAL_BEGIN, again)(edge)
        return lambda frame: (
            again(frame) if edge.name == BAD and saved and frame.kind == m.EVAL else opened(frame)
        )

    federation = Federation(config, wrap=wrap).run()
    assert "held-out rows" in federation.server.cohort.lost[BAD]


@pytest.mark.parametrize("share", ["step", "round"])
def test_shared_head_of_another_shape_is_refused(tiny, records, share):
    config = scenario(tiny["gpt2"], records, f"head.share={share}", "train.steps=1")
    change = tensors(head_weight__weight=lambda x: x[:, :-1].contiguous())
    federation = Federation(config, wrap=tampered(m.PHASE, change)).run()
    assert "head_weight" in federation.server.cohort.lost[BAD]


def test_others_train_on_as_if_the_lost_rows_had_not_been(tiny, records):
    """The oracle is unsplit training that has the last client's rows in the first steps only."""
    config = scenario(tiny["gpt2"], records, "head.share=step", "train.rounds=1", "train.steps=5")
    federation = Federation(config, wrap=tampered(m.STEP, lose, client="2", nth=3))
    unsplit = Unsplit(federation)
    expected = [unsplit.step(number) for number in range(2)]
    unsplit.batches.pop()
    expected += [unsplit.step(number) for number in range(2, 5)]
    federation.run()
    assert list(federation.server.cohort.lost) == ["2"]
    assert federation.recorder.losses() == pytest.approx(expected, rel=1e-5)
    for name, factor in federation.server.engine.adapter().items():
        assert relative(factor, unsplit.factors[name].detach()) < 1e-4, name
    assert relative(federation.head()[0], unsplit.heads[0].detach()) < 1e-5


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("change", [lose, fields(weight=-1)], ids=["lost", "wrong"])
def test_run_without_any_client_left_ends_with_one_sentence(tiny, records, change, nth, accumulate):
    config = scenario(
        tiny["gpt2"], records, "train.rounds=1", "train.steps=1", f"train.accumulate={accumulate}"
    )
    wrap = tampered(m.STEP, change, client="*", nth=nth)
    if nth > accumulate:
        assert not Federation(config, wrap=wrap).run().server.cohort.lost
        return
    with pytest.raises(FedloraError, match=r"no client is left at step 1 .*client 0: ") as caught:
        Federation(config, wrap=wrap).run()
    assert "\n" not in str(caught.value)


def test_round_with_too_few_clients_names_the_setting(tiny, records):
    config = scenario(tiny["gpt2"], records, "federation.min_clients=3", "train.steps=1")
    with pytest.raises(FedloraError, match=r"2 clients .* federation\.min_clients is 3"):
        Federation(config, wrap=tampered(m.STEP, lose)).run()


def test_client_lost_in_the_last_evaluation_does_not_spoil_it(tiny, records):
    config = scenario(tiny["gpt2"], records, "train.rounds=1", "train.steps=1")
    whole = Federation(config).run().recorder.rounds[0]
    federation = Federation(config, wrap=tampered(m.EVAL, lose)).run()
    record = federation.recorder.rounds[0]
    assert record["lost"] == [BAD]
    for client in ("0", "2"):
        assert record["clients"][client]["loss"] == whole["clients"][client]["loss"]


def test_names_of_two_clients_must_differ(tiny, records):
    federation = Federation(scenario(tiny["gpt2"], records))
    cohort = federation.server.cohort
    with pytest.raises(FedloraError, match="'1' is already connected"):
        cohort.add(cohort["1"])
