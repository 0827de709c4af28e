"""Robust averages and limits within whole runs of tiny models."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support.federation import Federation, Handler, relative, same, scenario
from support.unsplit import Unsplit

from clients.edge_client import EdgeClient
from fedlora.errors import ClientLost
from fedlora.link import Frame, messages as m
from fedlora.server.compute import most_common
from fedlora.server.exchange.uploads import limit_rows
from simulations.studies.poison.attackers import POISONS, poisoner

EIGHT = ["federation.clients=8", "partition.min_rows=2", "train.rounds=1"]


def hostile(*clients: str, poison: str = "huge"):
    return poisoner(set(clients), POISONS[poison])


def adapter(tiny, records, *overrides: str, wrap=None) -> dict[str, torch.Tensor]:
    config = scenario(tiny["gpt2"], records, *EIGHT, *overrides)
    federation = Federation(config, **({} if wrap is None else {"wrap": wrap})).run()
    return federation.server.engine.adapter()


@pytest.mark.parametrize("share", ["personal", "round", "step"])
def test_norm_filter_with_nobody_to_filter_equals_unsplit_training(tiny, records, share):
    config = scenario(
        tiny["llama"], records, f"head.share={share}", "robust.average=norm_filter",
        "robust.options.factor=1e6", "train.rounds=1", "train.accumulate=2",
    )  # fmt: skip
    federation = Federation(config)
    unsplit = Unsplit(federation)
    expected = [unsplit.step(number) for number in range(3)]
    federation.run()
    assert federation.recorder.losses() == pytest.approx(expected, rel=1e-5)
    for name, factor in federation.server.engine.adapter().items():
        assert relative(factor, unsplit.factors[name].detach()) < 1e-4, name


@pytest.mark.parametrize("share", ["round", "step"])
def test_huge_gradients_leave_no_trace_in_adapter_or_head_of_a_norm_filter(tiny, records, share):
    """Whoever is left out might as well not have taken part."""
    filtered = ["robust.average=norm_filter", "robust.options.factor=20", f"head.share={share}"]
    config = scenario(tiny["gpt2"], records, *EIGHT, *filtered)
    poisoned = Federation(config, wrap=hostile("0")).run()

    def silent(client: EdgeClient) -> Handler:
        """Let one client's rows count for nothing from the first step on."""

        def handle(frame: Frame) -> Frame:
            if client.name == "0" and frame.kind == m.STEP:
                raise ClientLost("client 0 went out of reach")
            return client.handle(frame)

        return handle

    without = Federation(config, wrap=silent).run()
    mine, expected = (f.server.engine.adapter() for f in (poisoned, without))
    for name, factor in mine.items():
        assert relative(factor, expected[name]) < 1e-5, name
    assert relative(poisoned.head(1)[0], without.head(1)[0]) < 1e-5


@pytest.mark.parametrize("average", ["median", "trimmed_mean"])
def test_robust_runs_repeat_bit_for_bit_whatever_the_number_of_workers(tiny, records, average):
    config = scenario(tiny["gpt2"], records, *EIGHT, f"robust.average={average}")
    first = Federation(config, workers=1).run().server.engine.adapter()
    assert same(first, Federation(config, workers=4).run().server.engine.adapter())


def test_too_few_clients_for_a_robust_average_change_nothing_and_it_is_said(tiny, records, caplog):
    """Three clients begin, one is lost: among two nobody can be outvoted."""

    def wrap(client: EdgeClient) -> Handler:
        def handle(frame: Frame) -> Frame:
            if client.name == "1" and frame.kind == m.STEP:
                raise ClientLost("client 1 went out of reach")
            return client.handle(frame)

        return handle

    config = scenario(
        tiny["gpt2"], records, "robust.average=median", "head.share=step", "train.rounds=1"
    )
    federation = Federation(config, wrap=wrap)
    before = federation.server.engine.adapter()
    federation.run()
    assert same(before, federation.server.engine.adapter())
    assert "2 clients" in caplog.text and "3" in caplog.text


def test_row_limit_bounds_every_row_and_leaves_short_ones_as_they_are():
    gradient = torch.randn(9, 5) * torch.logspace(-3, 30, 9)[:, None]
    limited = limit_rows(gradient, None, 1.0)
    norms = gradient.double().norm(dim=1)
    assert torch.allclose(limited.norm(dim=1).double(), norms.clamp(max=1.0), rtol=1e-5)
    assert torch.equal(limited[norms < 1], gradient[norms < 1])
    lengths = [2, 4, 3]
    packed = limit_rows(gradient[:, :], lengths, 1.0)
    for part, whole in zip(packed.split(lengths), gradient.split(lengths), strict=True):
        norm = whole.double().norm()
        assert part.norm().item() == pytest.approx(min(1.0, float(norm)), rel=1e-5)
        assert torch.allclose(part.double(), whole.double() / norm.clamp_min(1.0), rtol=1e-5)


def test_row_and_head_limits_hold_what_a_client_sends(tiny, records):
    """A limit makes a gradient of any size a step takes that of the same direction at the limit."""
    limits = ["robust.row_clip=0.01", "robust.head_clip=0.01", "head.share=step"]

    def scaled(factor: float):
        def wrap(client: EdgeClient) -> Handler:
            def handle(frame: Frame) -> Frame:
                reply = client.handle(frame)
                if frame.kind != m.STEP or client.name != "0":
                    return reply
                larger = {
                    name: tensor * factor if "gradient" in name else tensor
                    for name, tensor in reply.tensors.items()
                }
                return dataclasses.replace(reply, tensors=larger)

            return handle

        return wrap

    one = adapter(tiny, records, *limits, wrap=scaled(1e3))
    other = adapter(tiny, records, *limits, wrap=scaled(1e9))
    for name, factor in one.items():
        assert relative(other[name], factor) < 1e-4, name
    free = adapter(tiny, records, "head.share=step", wrap=scaled(1e3))
    assert not all(relative(free[name], factor) < 1e-2 for name, factor in one.items())


def test_a_single_client_does_not_choose_the_first_head_for_all(tiny, records):
    def wrap(client: EdgeClient) -> Handler:
        def handle(frame: Frame) -> Frame:
            reply = client.handle(frame)
            if frame.kind != m.PHASE or client.name != "0":
                return reply
            wrong = {name: tensor + 7 for name, tensor in reply.tensors.items()}
            return dataclasses.replace(reply, tensors=wrong)

        return handle

    config = scenario(tiny["gpt2"], records, "head.share=step", "train.rounds=1")
    honest, poisoned = Federation(config).run(), Federation(config, wrap=wrap).run()
    assert torch.equal(honest.head(1)[0], poisoned.head(1)[0])


def test_most_common_weights_are_those_of_the_majority():
    good, bad = {"weight": torch.ones(2, 2)}, {"weight": torch.ones(1, 4)}
    assert most_common({"0": bad, "1": good, "2": {"weight": torch.ones(2, 2)}}) is good
    assert most_common({"0": {}, "1": {}}) == {}
    assert most_common({}) == {}
