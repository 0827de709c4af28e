"""What an owner's ledger counts, whatever the scenario says and however often a run stops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.private_federation import scenario

from clients.build import load_parts
from clients.edge_client import EdgeClient
from clients.owner import (
    Charges,
    Door,
    Origins,
    OwnerTerms,
    Private,
    local_scenario,
    own_number,
    plan_reporting,
)
from clients.owner.origins import origins
from clients.simulated_data import SimulatedData
from fedlora.config import ENDS, PAYLOADS, ClientLimit, NodeKeys, Scenario, with_overrides
from fedlora.errors import FedloraError
from fedlora.link import Frame, messages as m
from fedlora.privacy.accounting import Charge, rdp_epsilon
from fedlora.privacy.accounting.rdp import rho
from fedlora.privacy.ledger import BudgetSpentError, Ledger
from fedlora.privacy.mechanisms import SystemNoise
from fedlora.tasks import Sample, load_records

LIMIT = ClientLimit(8.0)


def build(config: Scenario, terms: OwnerTerms, run: str = "") -> EdgeClient:
    data = SimulatedData(config, config.federation.clients)
    return data.build(load_parts(config, data.labels), 0, terms=terms, run=run)


def upload(client: EdgeClient, samples: list[int]) -> torch.Tensor:
    gradient = Private(torch.zeros(len(samples), client.model.width))
    return client.release(gradient, [1] * len(samples), samples).value


def keys(**given: object) -> NodeKeys:
    """Return a device's keys, whose model is not what these tests are about."""
    return NodeKeys.read({"model": "package", **{k.replace("_", "-"): v for k, v in given.items()}})


def budgeted(records: Path, release: str, *overrides: str) -> Scenario:
    """Return a run that is calibrated to the whole of the owner's limit."""
    config = scenario(records, f"privacy.release={release}", *overrides)
    return replace(config, privacy=replace(config.privacy, sigma=None, epsilon=LIMIT.epsilon))


def text_scenario(data: Path, *overrides: str) -> Scenario:
    return with_overrides(
        scenario(data, "task.kind=causal_lm", "privacy.release=full", "head.share=personal"),
        ["federation.clients=1", "data.holdout=0", "privacy.uploads=1", *overrides],
    )


def test_a_record_keeps_its_identity_at_any_length_and_prompt(tmp_path: Path) -> None:
    rows = [f"the cat number {i} = sat on the mat again and again" for i in range(12)]
    rows.append(" ".join(["one"] * 14) + " = x")  # short lengths leave nothing of it to train on
    data = tmp_path / "train.csv"
    data.write_text("text,label\n" + "".join(f"{row},a\n" for row in rows))
    terms, counts, known = OwnerTerms(tmp_path / "ledger"), [], dict[int, int]()
    for length, *prompt in ((8,), (20, " = "), (40, " = "), (40,)):
        overrides = [f"data.prompt_separator='{separator}'" for separator in prompt]
        client = build(text_scenario(data, f"task.max_length={length}", *overrides), terms)
        samples = client.door.truth(client.train)
        for sample, name in zip(samples, client.release._charges._ids, strict=True):
            assert known.setdefault(sample.source, name) == name
        counts.append(len(samples))
        client.release._charges.charge(list(range(len(samples))), Charge.gaussian(4.0))
        assert client.release._charges.ledger.rho == pytest.approx(len(counts) * rho(4.0))
        client.release.close()
    assert counts == [13, 12, 13, 13] and len(set(known.values())) == 13


def test_what_is_spent_at_one_length_is_refused_at_another(tmp_path: Path) -> None:
    data = tmp_path / "train.csv"
    rows = [f"the cat = number {i} sat" for i in range(12)]
    rows.append(" ".join(["one"] * 14) + " = x")
    data.write_text("text,label\n" + "".join(f"{row},a\n" for row in rows))
    terms = OwnerTerms(tmp_path / "ledger", LIMIT)

    def config(length: int) -> Scenario:
        config = text_scenario(data, f"task.max_length={length}", "data.prompt_separator=' = '")
        return replace(config, privacy=replace(config.privacy, sigma=None, epsilon=8.0))

    client = build(config(12), terms)
    client.release._charges.charge(
        list(range(len(client.door.truth(client.train)))),
        Charge.gaussian(client.release.plan.sigma),
    )
    client.release.close()
    with pytest.raises(FedloraError, match=r"from epsilon 8 to .* beyond its privacy-epsilon 8"):
        build(config(40), terms)


def test_samples_of_one_record_share_its_budget_and_a_sample_without_one_is_refused(
    tmp_path: Path,
) -> None:
    rows = [[{"text": "a"}, {"text": "b"}], [{"text": "a"}]]
    made = [[Sample((1,), 0, 1), Sample((2,), 0, 1), Sample((3,), 0, 0)], [Sample((4,), 0, 0)]]
    with Ledger(tmp_path / "ledger", "0") as ledger:
        first, second, third, held_out = origins(rows, made).ids(ledger)
        assert first == second and len({first, third, held_out}) == 3
    with pytest.raises(FedloraError, match=r"source -1 of 2 records.*let the task"):
        origins(rows, [[Sample((1,), 0)], []])


@pytest.mark.parametrize("samples", [1, 3])
def test_noised_counts_are_told_only_where_a_record_moves_them_as_much_as_is_paid_for(
    records: Path, tmp_path: Path, samples: int
) -> None:
    """The sums over several samples of a record move by as much more."""
    config = budgeted(records, "full")
    terms = OwnerTerms(tmp_path / "ledger", LIMIT, deployed=True, reports="true")
    sources = [0, *[1] * samples, *[2] * samples]
    charges = Charges.open(terms, "0", Origins([b"a", b"b", b"c"], sources), 1, "run")
    door = Door(terms, charges.ledger)
    told = plan_reporting(config, terms, door, charges, 2 * samples, SystemNoise())
    assert told.begin() == told.evaluates == (samples == 1)
    assert charges.rho == (pytest.approx(rho(told.sigma)) if told.sigma else 0.0)
    charges.close()


def test_a_devices_text_file_is_cut_as_its_owner_says(tmp_path: Path) -> None:
    text = tmp_path / "own.txt"
    text.write_text("ann: one\n\nbob: two\n")
    asked = with_overrides(
        scenario(text, "task.kind=causal_lm"),
        ["data.record_separator='o'", "data.pattern='(?P<text>.)'"],
    )
    for node, expected in (
        ({}, [{"text": "ann: one"}, {"text": "bob: two"}]),
        ({"record-separator": "\n\n"}, [{"text": "ann: one"}, {"text": "bob: two"}]),
        (
            {"record-separator": "\n\n", "pattern": "(?P<who>.+): (?P<text>.+)"},
            [{"who": "ann", "text": "one"}, {"who": "bob", "text": "two"}],
        ),
    ):
        own = local_scenario(asked, keys(data=str(text), **node))
        assert load_records(own.data, "train") == expected
    trial = keys(scenario_data="true")
    assert local_scenario(asked, trial).data == asked.data  # the scenario's own data


def test_a_server_cannot_have_labels_sent_as_text(records: Path) -> None:
    asked = with_overrides(
        scenario(records, "task.labels=['cold','mild','warm']"),
        ["data.text=label", "data.label=text", "data.columns=['label','text']"],
    )
    owned = {"data": str(records), "privacy_epsilon": "8"}
    for node, missing in ((owned, "text"), ({**owned, "text": "text"}, "label")):
        with pytest.raises(FedloraError, match=f"not which column of data is the {missing}"):
            local_scenario(asked, keys(**node))
    own = local_scenario(asked, keys(**owned, text="text", label="label")).data
    assert (own.text, own.label, own.columns) == ("text", "label", ())
    with pytest.raises(FedloraError, match="text and label are both the column 'label'"):
        keys(data=str(records), text="label", label="label")
    with pytest.raises(FedloraError, match="text and label are both the column 'text'"):
        local_scenario(asked, keys(data=str(records), text="text"))
    named = local_scenario(asked, keys(data=str(records), columns="text, label")).data
    assert named.columns == ("text", "label")


def test_a_server_cannot_choose_a_file_of_the_device(records: Path) -> None:
    asked = scenario(records, "task.labels=['cold','mild','warm']")
    shipped = with_overrides(asked, ["data.train=package:simulations/quickstart/requests.csv"])
    for wanted in (asked, shipped):
        with pytest.raises(FedloraError, match="the node configuration sets no data"):
            local_scenario(wanted, keys())
    own = keys(data=str(records), test=str(records))
    elsewhere = with_overrides(asked, ["data.train=/etc/passwd", "data.test=/etc/passwd"])
    data = local_scenario(elsewhere, own).data
    assert (data.train, data.test) == (str(records), str(records))
    model = with_overrides(asked, ["model.path=/etc"])
    with pytest.raises(FedloraError, match="no server may choose what is read on this device"):
        local_scenario(model, NodeKeys.read({"data": str(records)}))
    for path in (
        "path='/etc/passwd'",
        "path=['package:simulations/traces/hsdpa.log', '/etc/passwd']",
        "path='package:simulations/traces/hsdpa.log', up_path='/etc/passwd'",
    ):
        trace = with_overrides(asked, ["channel.model=trace", f"channel.options={{{path}}}"])
        with pytest.raises(FedloraError, match="no server may choose what is read on this device"):
            local_scenario(trace, own)


CODECS = [f"link.{name}" for name in (*PAYLOADS, *ENDS)]


@pytest.mark.parametrize("key", ["task.kind", "channel.model", "channel.predict", *CODECS])
def test_a_server_cannot_choose_code_of_the_device(records: Path, key: str) -> None:
    beside = {"channel.predict": ["channel.report.delay_s=1"]}
    beside |= {f"link.{end}": ["head.share=personal"] for end in ENDS}
    code = [*beside.get(key, []), f"{key}=module:Class", "python_path=/srv/theirs"]
    asked = with_overrides(scenario(records), code)
    with pytest.raises(FedloraError, match=f"{key} is 'module:Class', and no server may choose"):
        local_scenario(asked, keys(data=str(records)))
    plain = with_overrides(scenario(records, "task.labels=['a']"), ["python_path=/srv/theirs"])
    assert local_scenario(plain, keys(data=str(records))).python_path == ""


def test_what_a_server_computes_with_is_not_imported_on_a_device(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be named; what a device would run is refused above."""

    def imported(kind: str, name: str) -> None:
        raise AssertionError(f"a device imports {name} for {kind}")

    names = [f"{key}=theirs:C" for key in ("ranks.strategy", "channel.schedule.scheduler")]
    names += [
        "robust.average=theirs:C",
        "federation.clients=3",
        "task.labels=['cold','mild','warm']",
    ]
    asked = with_overrides(scenario(records, "privacy.release=full"), names)
    monkeypatch.setattr("fedlora.registry._load_path", imported)
    own = local_scenario(asked, keys(data=str(records), model=asked.model.path))
    terms = OwnerTerms(tmp_path / "ledger", own_data=True)
    client = build(replace(own, data=replace(own.data, holdout=0.0)), terms)
    client.release.close()


def test_a_server_cannot_call_a_device_by_another_number(tmp_path: Path) -> None:
    assert own_number({"client": 3}, keys(partition_id=3)) == 3
    assert own_number({"client": 3}, keys(privacy_ledger=str(tmp_path))) == 3
    for node in ({"partition_id": 3}, {"partition_id": 3, "privacy_ledger": "x"}, {}):
        with pytest.raises(FedloraError, match="calls this device client 7"):
            own_number({"client": 7}, keys(**node))
    for wrong in ("three", "-3", -3, 3.5, True, "", "٣"):
        with pytest.raises(FedloraError, match=r"partition-id is .*; set the device's number"):
            keys(partition_id=wrong)


@pytest.mark.parametrize("release", ["full", "row_space", "logits", "labels"])
def test_a_plan_is_checked_with_its_activations(
    records: Path, tmp_path: Path, release: str
) -> None:
    config = (
        scenario(
            records,
            f"privacy.release={release}",
            "privacy.uploads=1",
            "privacy.activation_sigma=2.6",
        )
        if release != "labels"
        else budgeted(records, "logits", "privacy.activation_sigma=2.6")
    )
    if release == "labels":
        config = replace(config, privacy=replace(config.privacy, release="labels"))
    else:
        config = replace(config, privacy=replace(config.privacy, sigma=2.6))
    one, both = (rdp_epsilon(n * rho(2.6), 1e-5) for n in (1, 2))
    if release == "labels":
        one, both = 8.0 - 0.5, 8.0
    with pytest.raises(FedloraError, match="beyond its privacy-epsilon"):
        build(config, OwnerTerms(tmp_path / "ledger", ClientLimit((one + both) / 2)))
    with Ledger(tmp_path / "ledger", "0") as ledger:
        assert ledger.epsilon(1e-5) == 0.0
    build(config, OwnerTerms(tmp_path / "ledger", ClientLimit(both * (1 + 1e-6)))).release.close()


@pytest.mark.parametrize(
    ("release", "spread"), [("row_space", "even"), ("full", "even"), ("row_space", "channel")]
)
def test_a_restarted_client_goes_on_with_what_is_left_of_its_plan(
    records: Path, tmp_path: Path, release: str, spread: str
) -> None:
    config = budgeted(records, release, f"privacy.spread={spread}", "privacy.uploads=3")
    terms, run = OwnerTerms(tmp_path / "ledger", LIMIT), "0" * 16
    for _ in range(3):  # limit 8 and plan 8: only what is left fits
        client = build(config, terms, run)
        upload(client, [0, 1])
        client.release.close()
    client = build(config, terms, run)
    with pytest.raises(BudgetSpentError, match="planned for 3 uploads"):
        upload(client, [1])
    for _ in range(3):
        upload(client, [2])
    with pytest.raises(BudgetSpentError):
        upload(client, [2])
    assert client.release._charges.ledger.epsilon(LIMIT.delta) <= LIMIT.epsilon
    client.release.close()
    with pytest.raises(FedloraError, match="beyond its privacy-epsilon 8"):
        build(config, terms, "1" * 16)  # another run begins with its whole plan


def test_without_a_limit_too_a_restart_gives_no_fresh_uploads(
    records: Path, tmp_path: Path
) -> None:
    config = budgeted(records, "full", "privacy.uploads=2")
    for _ in range(2):
        client = build(config, OwnerTerms(tmp_path / "ledger"), "run")
        upload(client, [5])
        client.release.close()
    client = build(config, OwnerTerms(tmp_path / "ledger"), "run")
    with pytest.raises(BudgetSpentError):
        upload(client, [5])


def test_a_restarted_client_repeats_its_noised_labels_and_pays_once(
    records: Path, tmp_path: Path
) -> None:
    config, terms = budgeted(records, "logits"), OwnerTerms(tmp_path / "ledger", LIMIT)
    sent = []
    for samples in ([0, 1, 2], [1, 2, 3], [3, 0, 1]):
        client = build(config, terms, "run")
        sent.append(dict(zip(samples, upload(client, samples), strict=True)))
        assert client.release.spent()["rho"] == pytest.approx(rho(client.release.plan.sigma))
        client.release.close()
    for sample in range(4):
        messages = [found[sample] for found in sent if sample in found]
        assert all(torch.equal(messages[0], other) for other in messages)
    (tmp_path / "ledger.noised").unlink()
    client = build(config, terms, "run")
    with pytest.raises(BudgetSpentError):  # never a second look at the label
        upload(client, [0])


@pytest.mark.parametrize("killed", ["charge", "keep"])
def test_a_label_that_a_crash_kept_from_leaving_is_paid_once_at_most(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: str
) -> None:
    config, terms = budgeted(records, "logits"), OwnerTerms(tmp_path / "ledger", LIMIT)
    client = build(config, terms, "run")

    def kill(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    owner = client.release._charges.ledger if killed == "charge" else client.release._noised
    monkeypatch.setattr(owner, killed, kill)
    with pytest.raises(KeyboardInterrupt):
        upload(client, [0, 1])
    assert client.release._charges.ledger.rho == 0.0
    client.release.close()
    again = build(config, terms, "run")
    first = upload(again, [0, 1])
    assert again.release._charges.ledger.rho == pytest.approx(rho(again.release.plan.sigma))
    again.release.close()
    assert torch.equal(upload(build(config, terms, "run"), [0, 1]), first)


def test_what_a_lost_message_had_paid_for_pays_for_no_later_draw(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is lost, and the client is killed between drawing anew and paying."""
    config = budgeted(records, "logits", "privacy.uploads=2")
    terms = OwnerTerms(tmp_path / "ledger", LIMIT)

    def kill(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    client = build(config, terms, "run")
    first = upload(client, [0, 1])
    client.release.close()
    (tmp_path / "ledger.noised").unlink()
    client = build(config, terms, "run")
    monkeypatch.setattr(client.release._charges.ledger, "charge", kill)
    with pytest.raises(KeyboardInterrupt):
        upload(client, [0, 1])
    client.release.close()
    again = build(config, terms, "run")
    assert not torch.equal(upload(again, [0, 1]), first)
    assert again.release._charges.ledger.rho == pytest.approx(2 * rho(again.release.plan.sigma))


def test_a_client_that_comes_back_in_a_private_run_answers(records: Path, tmp_path: Path) -> None:
    config, terms = budgeted(records, "logits"), OwnerTerms(tmp_path / "ledger", LIMIT)
    for _ in range(3):
        client = build(config, terms, "run")
        client.handle(Frame(m.BATCH, "0", 1))
        z = {"representation": torch.randn(client.batches.batch_size, client.model.width)}
        assert client.handle(Frame(m.STEP, "0", 1, {"step": 0}, z)).kind == m.GRADIENT
        client.release.close()
