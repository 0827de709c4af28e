"""Heads and fronts that clients share: what travels of them by each codec, and what arrives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.federation import Federation
from support.values import scenario

from fedlora.errors import FedloraError, ProtocolError
from fedlora.link import create_codec, pack_ends, unpack_ends

SHAPES = {
    "head_weight.mix.bias": torch.Size([5]),
    "head_weight.mix.weight": torch.Size([5, 40]),
    "front_weight.project": torch.Size([3, 7, 2]),
}


def ends(seed: int = 0) -> dict[str, torch.Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=drawn) for name, shape in SHAPES.items()}


@pytest.mark.parametrize(
    ("name", "bits", "within"),
    [("fp32", 0, 0.0), ("bf16", 0, 0.02), ("int8", 0, 0.03), ("rotated", 6, 0.3)],
)
def test_ends_arrive_under_their_names_within_what_the_codec_loses(name, bits, within):
    codec = create_codec(name, **({"bits": bits} if bits else {}))
    sent = ends()
    frame = {**pack_ends(sent, codec), "lengths": torch.zeros(2)}
    found = unpack_ends(frame, SHAPES, codec)
    assert set(found) == {*SHAPES, "lengths"}
    for key, tensor in sent.items():
        torch.testing.assert_close(found[key], tensor, atol=within, rtol=0)
    if name == "fp32":
        assert set(frame) == {*SHAPES, "lengths"}
    else:
        assert sum(t.nbytes for k, t in frame.items() if k != "lengths") < 0.6 * 4 * (247 + 265)


def test_a_gradient_that_is_rounded_at_random_is_right_in_the_mean():
    codec, sent, trials = create_codec("rotated", bits=2), ends(), 60
    mean = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    for key in range(trials):
        frame = pack_ends(sent, codec, key.to_bytes(32, "big"))
        for name, tensor in unpack_ends(frame, SHAPES, codec).items():
            mean[name] += tensor / trials
    error = torch.cat([(mean[name] - sent[name]).flatten() for name in SHAPES])
    once = unpack_ends(pack_ends(sent, codec, bytes(32)), SHAPES, codec)
    first = torch.cat([(once[name] - sent[name]).flatten() for name in SHAPES])
    assert float(error.norm() / first.norm()) == pytest.approx(trials**-0.5, rel=0.5)


def test_another_payload_than_agreed_is_refused():
    codec = create_codec("int8")
    frame = pack_ends({**ends(), "head_weight.more": torch.zeros(300)}, codec)
    with pytest.raises(ProtocolError, match="payload part is"):
        unpack_ends(frame, SHAPES, codec)
    with pytest.raises(ProtocolError, match="both sides must name one codec"):
        unpack_ends(frame, SHAPES, create_codec("bf16"))


@pytest.mark.parametrize("share", ["round", "step"])
def test_clients_compute_with_the_weights_that_arrive(checkpoints, tmp_path, share):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(24, 20, 2)))
    more = ["task.kind=forecast", f"data.train={tmp_path / 'x.npy'}", "task.forecast.features=2"]
    more += ["train.embedding=true", f"front.share={share}", f"head.share={share}"]
    more += ["link.end_weight=rotated", "link.end_weight_bits=5", "link.end_gradient=rotated"]
    run = Federation(scenario(checkpoints["gpt2"], *more)).run()
    codec, sharing = create_codec("rotated", bits=5), run.server.training.sharing
    first, second = run.clients
    for common, prefix in ((sharing.head, "head_weight."), (sharing.front, "front_weight.")):
        assert common is not None
        own = {prefix + n: p.detach() for n, p in common.parameters.items()}
        shapes = {name: tensor.shape for name, tensor in own.items()}
        arrived = unpack_ends(pack_ends(own, codec), shapes, codec)
        for client in (first, second):
            module = client.head.module if common is sharing.head else client.model.front.embedding
            for name, parameter in module.named_parameters():
                torch.testing.assert_close(parameter.detach(), arrived[prefix + name])
        assert not all(torch.equal(own[name], arrived[name]) for name in own)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["head.share=step", "privacy.epsilon=3"], "under privacy client and server must have"),
        (["head.share=step", "link.r_cut=2"], "with link.r_cut 2 the server applies the head"),
    ],
)
def test_coded_ends_are_refused_where_both_sides_need_the_same(overrides, said, tmp_path):
    with pytest.raises(FedloraError, match=f"{said}.*; set it to fp32"):
        scenario(tmp_path, "link.end_weight=int8", *overrides)


def test_personal_ends_travel_in_no_codec_so_that_none_is_in_the_way(tmp_path):
    scenario(tmp_path, "link.end_weight=int8", "head.share=personal", "privacy.epsilon=3")
