"""A mechanism of one's own: in a simulation as it comes, on a device where its owner allows it."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from support.owner_device import WIDTH, Ask, Device, attack, scenario as asked
from support.private_federation import Federation, scenario

from fedlora import registry
from fedlora.check import check_plugins
from fedlora.errors import FedloraError
from fedlora.link import Frame, create_codec, messages as m, pack
from fedlora.privacy.accounting import upload_cost
from fedlora.privacy.mechanisms import SHIPPED, mechanism_class, mechanism_of
from fedlora.privacy.plan import check_release, plan_release
from simulations.audit.attacks.mechanism_audit import PROBE_WIDTH, Mechanism
from simulations.audit.mechanism import audit_client

SKETCH = "simulations.examples.sketch:Sketch"


def register(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """Let a package have registered a mechanism."""
    known = registry._registered
    entry = {name: EntryPoint(name, value, "fedlora.mechanisms")}
    monkeypatch.setattr(
        registry, "_registered", lambda kind: entry if kind == "mechanisms" else known(kind)
    )


@pytest.mark.parametrize("share", ["step", "personal"])
def test_the_example_trains_and_its_epsilon_is_told(records: Path, share: str) -> None:
    overrides = ("privacy.sigma=none", "privacy.epsilon=8", f"head.share={share}")
    config = scenario(records, f"privacy.release={SKETCH}", *overrides, "privacy.probe_every=1")
    federation = Federation(config).run()
    assert federation.server.cohort.lost == {}
    (sent, *_) = (r.tensors for r in federation.replies(m.GRADIENT))
    assert any(tensor.shape[1:] == (WIDTH // 4,) for tensor in sent.values())
    block = federation.server.training.summary_fields()["privacy"]
    assert block["release"] == SKETCH and 0 < block["epsilon"] <= 8
    assert block["rho"] <= 2 * upload_cost(block["sigma"]) * (1 + 1e-9)
    assert federation.recorder.rounds[-1]["gradient_snr"] is not None


def test_the_audit_looks_at_a_mechanism_of_ones_own(
    records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []

    def once(build: Callable[[], Mechanism], sigma: float, clip_norm: float, **_: object) -> None:
        gradient = torch.full((6, PROBE_WIDTH), 20 * clip_norm)
        seen.append(build()(gradient, [2, 2, 2]))

    monkeypatch.setattr("simulations.audit.mechanism.audit_mechanism", once)
    audit_client(scenario(records, f"privacy.release={SKETCH}"), 2.0)
    assert seen[0].shape == (6, PROBE_WIDTH) and seen[0].abs().max() < 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("support.mechanisms:OtherShape", r"\(OtherShape\) returns shape \(\d+, 2\) from values"),
        ("support.mechanisms:Raising", r"\(Raising\) fails \(AttributeError.*mend it"),
    ],
)
def test_a_broken_one_ends_the_run_in_one_sentence(records: Path, name: str, said: str) -> None:
    config = scenario(records, f"privacy.release={name}")
    with pytest.raises(FedloraError, match=said) as caught:
        Federation(config).run()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["privacy.release=pathlib:Path"], r"inherits from fedlora\.privacy\.mechanisms\.base\."),
        (["privacy.release=ful"], r"privacy\.release: no mechanisms plug-in is called 'ful'.*full"),
        (["privacy.release=ful", "privacy.sigma=none"], "did you mean full"),
        (["privacy.release=support.mechanisms:Demanding"], "made with a policy alone.*numbers"),
        (["privacy.release=support.mechanisms:Careless"], "that randomises labels adds no noise"),
        (["privacy.release=support.mechanisms:PaysInLabels"], r"which no plan counts; return a"),
        (
            ["privacy.release=support.mechanisms:Laplace", "privacy.spread=channel"],
            r"privacy\.spread is channel, .* set privacy\.spread to even",
        ),
    ],
)
def test_a_release_that_does_not_fit_is_refused_before_anything_starts(
    records: Path, overrides: list[str], said: str
) -> None:
    config = scenario(records, *overrides)
    with pytest.raises(FedloraError, match=said):
        check_plugins(config)
        check_release(config, pools=True, trains_head=True)
        mechanism = mechanism_of(config.privacy)
        assert mechanism is not None
        plan_release(mechanism, config, 40, 3, pools=True, trains_head=True)


def test_a_device_takes_no_mechanism_that_its_owner_has_not_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, "sketch", "no_such_module:Nothing")  # it is not even imported
    device = Device(tmp_path, privacy_mechanisms="other")
    told = attack(device, monkeypatch, asked("privacy.release=sketch"), _nothing)
    assert told["reason"] == "terms"
    assert not (tmp_path / "ledger").exists()


def test_a_device_pays_for_a_mechanism_that_its_owner_has_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, "sketch", SKETCH)
    device, sent = Device(tmp_path, privacy_mechanisms="sketch"), list[Frame]()

    def serve(ask: Ask, hello: Frame) -> None:
        ask(m.PHASE)
        ask(m.ROUND, {"round": 1})
        rows = len(ask(m.BATCH).tensors["lengths"])
        z = pack("representation", torch.zeros(rows, WIDTH), create_codec("fp32"))
        head = {f"{m.HEAD_WEIGHT}weight": torch.ones(2, WIDTH)}
        step = {"step": 0, "update": True, "gradient": True, "next": False}
        sent.append(ask(m.STEP, step, z | head))

    told = attack(device, monkeypatch, asked("privacy.release=sketch"), serve)
    assert "reason" not in told
    assert sent[0].kind == m.GRADIENT and sent[0].fields["sigma"] > 0
    assert device.rho() == pytest.approx(upload_cost(sent[0].fields["sigma"]))


def test_no_package_takes_the_name_of_one_of_fedloras_own(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, "full", SKETCH)
    assert mechanism_class("full") is SHIPPED["full"]


def _nothing(ask: Ask, hello: Frame) -> None:
    raise AssertionError("the device took part")
