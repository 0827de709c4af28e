"""What onlookers see of a run agrees with what the run wrote down."""

from __future__ import annotations

import io
import json
import logging
import socket
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from fedlora.check import check_plugins
from fedlora.cli import main
from fedlora.config import Scenario, with_overrides
from fedlora.errors import FedloraError
from fedlora.observe.observer import RunState
from fedlora.observe.outcome import JsonFormatter
from fedlora.observe.recorder import ObservedFolder, observed
from fedlora.observe.top import RunView
from fedlora.report import RunFolder
from fedlora.server.exchange.watch import Watch


def samples(text: str) -> dict[str, float]:
    """Parse Prometheus' text format with its own parser."""
    from prometheus_client.parser import text_string_to_metric_families

    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            found[sample.name + (f"{{{labels}}}" if labels else "")] = sample.value
    return found


def test_scrapes_follow_the_run(watched):
    steps = [samples(text).get("fedlora_step{phase=train}", 0.0) for text in watched.scraped]
    assert steps == [0, 1, 2, 3, 4, 5, 6]


def test_last_scrape_agrees_with_the_rounds(watched):
    found, rounds = samples(watched.scraped[-1]), watched.folder.read_metrics()
    last = rounds[-1]
    assert found["fedlora_run_info{name=watched,version=0.1.0}"] == 1
    assert found["fedlora_rounds_finished_total"] == 2
    assert found["fedlora_held_out_metric{name=accuracy}"] == pytest.approx(last["metric"])
    assert found["fedlora_held_out_loss"] == pytest.approx(last["loss"])
    assert found["fedlora_air_seconds_total"] == pytest.approx(
        sum(record["air_seconds"] for record in rounds)
    )
    up = sum(sum(record["bits"]["up"].values()) for record in rounds)
    assert found["fedlora_payload_bits_total{direction=up,phase=train}"] == up
    assert found["fedlora_clients{state=connected}"] == 3
    assert found["fedlora_clients{state=lost}"] == 1
    assert found["fedlora_client_misses{client=3}"] == 1
    for client, record in last["clients"].items():
        of = f"{{client={client}}}"
        assert found[f"fedlora_client_rank{of}"] == pytest.approx(record["mean_rank"])
        assert found[f"fedlora_client_link_rate_bps{of}"] == pytest.approx(record["rate_bps"])
    assert not any("epsilon" in name for name in found)  # nothing is private in this run
    assert found["process_resident_memory_bytes"] > 1e6
    now = time.time()
    assert now - 600 < found["fedlora_client_last_seen_timestamp_seconds{client=0}"] <= now


def test_endpoint_is_on_loopback_and_ends_with_the_run(watched):
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://127.0.0.1:{watched.port}/metrics", timeout=5)
    assert with_overrides(Scenario(), []).observe.prometheus_port == 0
    assert Scenario().observe.prometheus_host == "127.0.0.1"


def test_epsilon_is_shown_where_it_is_spent(tmp_path):
    pytest.importorskip("prometheus_client")
    from fedlora.observe.prometheus import PrometheusObserver

    state, observer = RunState(), PrometheusObserver(Scenario())
    record = {"round": 1, "clients": {"0": {"epsilon": 2.5}, "1": {"epsilon": 3.0}}}
    state.note_round(record)
    observer.on_round(state, record)
    values = {
        (family.name, *sample.labels.values()): sample.value
        for family in observer.collect()
        for sample in family.samples
    }
    assert values["fedlora_epsilon",] == 3.0
    assert values["fedlora_client_epsilon", "0"] == 2.5


def test_a_client_that_rests_has_spent_its_epsilon_all_the_same():
    """With ``federation.clients_per_round`` the last round need not hold who has spent most."""
    state = RunState()
    for number, spent in enumerate(({"0": 3.0}, {"1": 2.0}), start=1):
        state.note_round(
            {"round": number, "clients": {c: {"epsilon": e} for c, e in spent.items()}}
        )
    assert state.epsilon == 3.0


def test_a_resumed_run_counts_the_rounds_before_it_and_each_once(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    for number in (1, 2, 3):
        folder.append_round({"round": number, "air_seconds": 2.0**number, "late_deliveries": 1})
    resumed = ObservedFolder(folder, 1.0, [])
    folder.forget_rounds_after(2)  # as a resume does that finds round 2 as its last state
    resumed.append_round({"round": 3, "air_seconds": 32.0, "late_deliveries": 0})
    view = RunView(folder)
    view.poll()
    for state in (resumed.state, view.state):
        assert state.rounds == 3
        assert state.totals == {"air_seconds": 2.0 + 4.0 + 32.0, "late_deliveries": 2}


def test_tensorboard_holds_the_losses_and_the_metric(watched):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(watched.folder.path / "tensorboard")).Reload()
    losses = [e["loss"] for e in watched.folder.read_events()[0] if e["event"] == "step"]
    assert [s.value for s in events.Scalars("train/step_loss")] == pytest.approx(losses)
    rounds = watched.folder.read_metrics()
    metric = events.Scalars("train/held_out_accuracy")
    assert [(s.step, s.value) for s in metric] == [
        (record["step"], pytest.approx(record["metric"])) for record in rounds
    ]


def rounds_into(folder: Path, *settings: str) -> None:
    """Let a scenario's observers see two steps and two rounds."""
    run = RunFolder.create(folder)
    with observed(run, with_overrides(Scenario(), settings)) as recorder:
        recorder.append_event("phase", name="train", rounds=2, steps=3, clients=1)
        recorder.append_event("step", phase="train", round=1, step=1, loss=0.75)
        recorder.append_event("step", phase="train", round=1, step=2, loss=float("nan"))
        for r in (1, 2):
            told = {"metric": r / 4, "metric_name": "accuracy", "clients": {}}
            recorder.append_round({"round": r, "step": 3 * r, **told})


def test_mlflow_holds_the_losses_and_the_metric_in_the_runs_folder(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    rounds_into(tmp_path / "run", "observe.mlflow=true")
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "run" / "mlflow").as_uri())
    number = client.get_experiment_by_name("fedlora").experiment_id
    [run] = client.search_runs([number])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    metric = client.get_metric_history(run.info.run_id, "train/held_out_accuracy")
    assert [(m.step, m.value) for m in metric] == [(3, 0.25), (6, 0.5)]
    loss = client.get_metric_history(run.info.run_id, "train/step_loss")
    assert [(m.step, m.value) for m in loss] == [(1, 0.75)]
    uri = ["observe.mlflow=true", "observe.mlflow_uri=nowhere://x"]
    with pytest.raises(FedloraError, match=r"observe\.mlflow_uri is 'nowhere://x', which cannot"):
        rounds_into(tmp_path / "other", *uri)


def test_wandb_keeps_its_run_offline_in_the_runs_folder(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    rounds_into(tmp_path / "run", "observe.wandb=true")
    [kept] = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    content = kept.read_bytes()
    for text in (b"train/held_out_accuracy", b"optimiser_step", b"train/step_loss", b"0.75"):
        assert text in content


def top(capsys, monkeypatch, *arguments: object) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["fedlora", "top", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "160")
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out + said.err


def test_top_shows_a_finished_run(watched, capsys, monkeypatch):
    status, text = top(capsys, monkeypatch, watched.folder.path, "--once")
    assert status == 0
    assert "round 2/2, step 6/6" in text
    assert "finished" in text and "steps/s" in text
    assert "3 ended, 1 lost" in text and "connected" not in text
    line = next(line for line in text.splitlines() if line.startswith("3  "))
    assert "lost" in line
    assert "client 3: client 3 went [red]out[/red] of reach" in text
    record = watched.folder.read_metrics()[-1]["clients"]["0"]
    first = next(line for line in text.splitlines() if line.startswith("0  "))
    assert f"{record['mean_rank']:.3f}" in first and f"{record['rate_bps'] / 1e6:.3g}" in first


def test_top_shows_a_run_that_goes_on_and_one_without_status(watched, tmp_path):
    """Fed event by event, as the file grows; the old run has no status file."""
    lines = watched.folder.events.read_bytes().splitlines(keepends=True)
    growing = RunFolder(tmp_path)
    view = RunView(growing)
    view.poll()
    assert not view.done
    for line in lines:
        with growing.events.open("ab") as file:
            file.write(line)
        view.poll()
        view.render(time.time(), height=12)
    assert view.done
    assert view.state.phase is not None and view.state.phase.step == 6


def test_top_begins_anew_when_another_run_is_begun_in_the_folder(watched, tmp_path):
    lines = watched.folder.events.read_bytes().splitlines(keepends=True)
    folder = RunFolder(tmp_path)
    folder.events.write_bytes(b"".join(lines))
    folder.metrics.write_bytes(watched.folder.metrics.read_bytes())
    view = RunView(folder)
    view.poll()
    assert (view.done, view.state.rounds) == (True, 2)
    folder.events.write_bytes(lines[0])
    folder.metrics.unlink()
    view.poll()
    assert (view.done, view.state.rounds) == (False, 0)


def test_top_leaves_out_clients_who_are_fine_where_there_is_no_room(watched):
    view = RunView(watched.folder)
    view.poll()
    table = view.render(time.time(), height=11).renderables[1]
    assert next(iter(table.columns[0].cells)).plain == "3"
    assert list(table.columns[1].cells)[-1] == "3 more"


def test_a_lost_device_costs_no_column_on_80(watched):
    view = RunView(watched.folder)
    view.poll()
    view.state.clients["3"]["reason"] = "it went out of reach " * 20
    console = Console(width=80, file=io.StringIO())
    console.print(view.render(time.time(), height=24))
    lines = console.file.getvalue().splitlines()
    head = next(line for line in lines if line.startswith("client "))
    for name in ("state", "seen", "answer ms", "up MB", "down MB", "rank", "metric", "misses"):
        assert name in head
    assert all(len(line) <= 80 for line in lines)
    assert [line for line in lines if line.startswith("client 3: it went out of reach")]


def test_a_run_whose_processes_were_killed_is_not_going_on(watched, tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    events = [json.loads(line) for line in watched.folder.events.read_text().splitlines()]
    for event in events:
        if event["event"] != "done":
            folder.append_event(
                event.pop("event"), **{k: v for k, v in event.items() if k != "time"}
            )

    def first_line(later_s: float) -> str:
        view = RunView(folder)
        view.poll()
        return view.render(time.time() + later_s).renderables[0].plain.splitlines()[0]

    assert first_line(91.0).endswith("going on")
    folder._lock.close()
    assert first_line(0.0).endswith("going on")  # it may be about to be taken up
    assert f"stopped: no process works on it; fedlora resume {folder.path}" in first_line(91.0)


def test_a_client_that_is_waited_for_is_not_shown_as_connected():
    cohort = SimpleNamespace(
        clients={"0": 1, "1": 1}, lost={}, late=set(), times_lost=Counter(), misses=Counter()
    )
    cohort_type = type("Cohort", (), {"__contains__": lambda _, c: c in cohort.clients})
    watched_cohort = cohort_type()
    watched_cohort.__dict__.update(cohort.__dict__)
    now = [100.0]
    watch = Watch(lambda *_: None, clock=lambda: now[0])
    for client in ("0", "1"):
        watch.book(client, "down", {}, 1)
    now[0] += 1.0
    watch.book("0", "up", {}, 1)
    states = {c: own["state"] for c, own in watch.snapshot(watched_cohort).items()}
    assert states == {"0": "connected", "1": "connected"}
    now[0] += 10.0
    states = {c: own["state"] for c, own in watch.snapshot(watched_cohort).items()}
    assert states == {"0": "connected", "1": "awaited"}


def test_the_log_tells_phases_and_rounds(watched, tmp_path, caplog):
    caplog.set_level("INFO", logger="fedlora")
    folder = RunFolder.create(tmp_path / "run")
    with observed(folder, Scenario()) as recorder:
        recorder.append_event("phase", name="train", rounds=1, steps=2, clients=3)
        recorder.append_round(watched.folder.read_metrics()[0])
    assert "name train, rounds 1, steps 2, clients 3" in caplog.text
    assert "round 1 ended: 4 clients, step 3, train_loss" in caplog.text


def test_top_of_no_run_is_one_sentence(tmp_path, capsys, monkeypatch):
    status, text = top(capsys, monkeypatch, tmp_path)
    assert status == 2
    assert "holds no run" in text and "Traceback" not in text


def test_port_that_is_taken_is_named(tmp_path):
    pytest.importorskip("prometheus_client")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        scenario = with_overrides(Scenario(), [f"observe.prometheus_port={port}"])
        with pytest.raises(FedloraError, match=f"{port}.*observe.prometheus_port"):
            with observed(RunFolder(tmp_path), scenario):
                pass


@pytest.mark.parametrize(
    ("setting", "module"),
    [
        ("observe.tensorboard=true", "torch.utils.tensorboard"),
        ("observe.mlflow=true", "mlflow"),
        ("observe.wandb=true", "wandb"),
        ("observe.prometheus_port=9", "prometheus_client"),
    ],
)
def test_missing_extra_is_named(tmp_path, monkeypatch, setting, module):
    monkeypatch.setitem(sys.modules, module, None)
    if module in ("mlflow", "wandb"):  # before anything starts
        with pytest.raises(FedloraError, match=rf"install fedlora\[{module}\], or set it to false"):
            check_plugins(with_overrides(Scenario(), [setting]))
    extras = "tensorboard|prometheus|mlflow|wandb"
    with pytest.raises(FedloraError, match=rf"install fedlora\[({extras})\]"):
        with observed(RunFolder(tmp_path), with_overrides(Scenario(), [setting])):
            pass


def test_json_log_is_one_object_a_line(tmp_path):
    handler = RunFolder(tmp_path).log_handler(formatter=JsonFormatter())
    logger = logging.getLogger("fedlora.test")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        logger.warning("client %s\nleaves", "ü1")
        try:
            raise ValueError("wrong")
        except ValueError:
            logger.exception("it failed")
    finally:
        logger.removeHandler(handler)
        handler.close()
    first, second = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert first["message"] == "client ü1\nleaves"
    assert first["level"] == "warning" and first["logger"] == "fedlora.test"
    assert first["time"].endswith("+00:00")
    assert "ValueError: wrong" in second["error"]
