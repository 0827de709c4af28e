"""How the keys of ``privacy`` and ``robust`` are drawn."""

from __future__ import annotations

from fedlora.privacy.mechanisms import SHIPPED, Full, Logits, Mechanism
from simulations.fuzz.drawing import Drawing


def draw_robust(d: Drawing) -> None:
    """Draw ``robust``."""
    if d.chance(0.2):
        name = d.set("robust.average", "median", "trimmed_mean", "norm_filter", wild=["krum"])
        if not d.wild:
            d.set("federation.clients", 3, 4, 5)
            d.drop("federation.clients_per_round")
        d.some(0.3, "robust.hostile", 1, wild=[2, 0, 9])
        d.some(0.4, "robust.momentum", 0.5, 0.9, wild=[1.0, -0.5])
        d.some(0.4, "robust.mix", True, False)
        if name == "norm_filter":
            d.some(0.4, "robust.options.factor", 1.0, 2.0, 5.0, wild=[0.0, "x", -1])
        elif d.wild:
            d.some(0.2, "robust.options.factor", 2.0)
    d.some(0.1, "robust.row_clip", 1e-3, 0.1, 10.0, wild=[-1.0, 1e308])
    d.some(0.1, "robust.head_clip", 1e-3, 0.1, wild=[float("nan")])


def draw_privacy(d: Drawing) -> None:
    """Draw ``privacy``, and who is told what under it."""
    if not (d.style == "private" or d.chance(0.15)):
        return
    d.some(0.6, "evaluate.report", True)
    release = d.set("privacy.release", *SHIPPED, wild=["noise"])
    kind = SHIPPED.get(release, Mechanism)
    everywhere = kind is Full  # any task, and any head but one that is sent round by round
    if d.chance(0.7) or not kind.noises_gradients:
        d.set("privacy.epsilon", 0.5, 2.0, 8.0, 30.0, wild=[0.001, 60.0, -1.0])
    else:
        d.set("privacy.sigma", 2.0, 5.6, 20.0, wild=[1e-3, 0.0])
    if not everywhere and not d.wild:
        d.case |= {"task.kind": "classification"}
        d.drop("_form", "data.chat", "data.prompt_separator", "model.client_back", "head.train")
        if d["_format"] == "txt":
            d.set("_format", "csv")
        if d["partition.column"] is None and d["partition.kind"] == "column":
            d.set("partition.column", "group")
        d.set("head.share", "step" if kind.noises_gradients else "personal", "step")
    elif everywhere and not d.wild and d["head.share"] == "round":
        d.set("head.share", "step", "personal")
    if d["evaluate.baseline"] and kind is not Logits and not d.wild:
        d.drop("evaluate.baseline")
    d.some(0.3, "privacy.delta", 1e-5, 1e-2, wild=[0.5, 0.0, 1.0])
    d.some(0.3, "privacy.clip_norm", 0.05, 1.0, 1e-6, wild=[0.0, 1e308])
    d.some(0.2, "privacy.unit", "sample", "token", wild=["row"])
    if not kind.repeats or d.wild:
        d.some(0.25, "privacy.spread", "even", "channel")
        d.some(0.2, "privacy.uplink", "coded", "analog")
        d.some(0.1, "privacy.analog_snr_db", 5.0, wild=[500.0])
    d.some(0.3, "privacy.tight", True)
    d.some(0.15, "privacy.uploads", 0, 50, wild=[1, 2, -1])
    d.some(0.25, "privacy.probe_every", 1, 2, wild=[-1])
    d.some(0.15, "privacy.activation_sigma", 10.0, wild=[1.0, 0.0])
    d.some(0.1, "privacy.activation_clip_norm", 1.0, 5.0, wild=[-1.0])
    d.some(0.4, "privacy.insecure_noise_seed", 3, wild=[-1])
    if d.style == "private":
        d.drop("federation.clients_per_round", "privacy.spread", "privacy.uplink")
        d.drop(*[key for key in d.case if key.startswith("channel.schedule")])
