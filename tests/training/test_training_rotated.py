"""Runs with few bits: close to exact ones, repeatable, and keyed as privacy needs it."""

from __future__ import annotations

import pytest
from support.federation import Federation, same, scenario

from fedlora.config import with_overrides
from fedlora.link.rotated import RotatedCodec
from simulations.audit import labels, tokens
from simulations.audit.recording import observe

CODED = ["link.activation=rotated", "link.representation=rotated", "link.gradient=rotated"]


def test_a_coded_run_stays_close_repeats_itself_and_sends_less(tiny, records):
    task = ["task.kind=causal_lm"]
    exact = Federation(scenario(tiny["gpt2"], records, *task)).run()
    config = scenario(tiny["gpt2"], records, *task, *CODED, "link.gradient_bits=4")
    first, second = Federation(config).run(), Federation(config).run()
    assert same(first.server.engine.adapter(), second.server.engine.adapter())
    assert first.recorder.losses() == pytest.approx(exact.recorder.losses(), rel=0.02)
    assert first.recorder.losses() != exact.recorder.losses()
    most = {"activation": 0.27, "gradient": 0.2, "representation": 0.27}
    full, coded = (run.server.air.ledger.totals()["bits"] for run in (exact, first))
    for kind, share in most.items():
        way = "down" if kind == "representation" else "up"
        assert 0 < coded[way][kind] < share * full[way][kind], kind


def test_what_rounds_a_noised_gradient_follows_from_no_seed(tiny, records, monkeypatch):
    """Without noise the key is the run's; with privacy it is drawn from the system each time."""
    keys: dict[str, list[bytes]] = {"plain": [], "private": []}
    real = RotatedCodec.encode_drawn

    def noting(name):
        def encode_drawn(self, x, key):
            keys[name].append(key)
            return real(self, x, key)

        return encode_drawn

    private = ["privacy.epsilon=8", "privacy.release=full", "head.share=step"]
    for name, more in (("plain", []), ("private", private)):
        monkeypatch.setattr(RotatedCodec, "encode_drawn", noting(name))
        config = scenario(tiny["gpt2"], records, "link.gradient=rotated", "train.rounds=1", *more)
        for _ in range(2):
            Federation(config).run()
    plain, drawn = keys["plain"], keys["private"]
    assert plain[: len(plain) // 2] == plain[len(plain) // 2 :]
    assert len(set(plain)) == len(plain) // 2
    assert len(set(drawn)) == len(drawn) > 0


def test_an_audit_attacks_what_crosses_the_cut_as_it_is_coded(tiny, records):
    """Two bits of each number still tell every token, and labels as well as before."""
    few = ["link.activation=rotated", "link.gradient=rotated"]
    config = scenario(
        tiny["gpt2"], records, *few, "head.share=step", "train.rounds=1", "train.steps=2"
    )
    bits = [f"link.{name}_bits=2" for name in ("activation", "gradient")]
    seen = observe(with_overrides(config, bits))
    got, table = tokens.received(seen), tokens.single_tokens(seen.parts)
    exact = table[got.ids]
    assert 0.05 < float((got.activations - exact).norm() / exact.norm()) < 0.7
    assert tokens.token_accuracy(tokens.nearest_tokens(got.activations, table), got.ids) > 0.9
    found = labels.attack_labels(labels.labelled(seen.uploads, config.privacy), config.privacy)
    assert max(own.get("auc") or 0.0 for own in found.values() if isinstance(own, dict)) > 0.9, (
        found
    )
