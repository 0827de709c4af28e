"""What sharing is worth: errors at home and everywhere, passes by other channels, few samples."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fedlora.config import with_overrides
from fedlora.errors import FedloraError
from fedlora.scenarios import find_scenario
from simulations.csi import sharing
from simulations.csi.sharing import (
    GRU,
    WAYS,
    Cell,
    Row,
    Trial,
    best_passes,
    check_same,
    figures,
    settings,
    sharing_folder,
    study,
)
from simulations.csi.windows import Data, Windows

SHIPPED = find_scenario("csi-prediction")


def test_a_site_is_asked_for_its_own_channels_and_for_those_of_all():
    ahead = torch.tensor([1.0, 2.0, 3.0, 1.0])[:, None, None]
    site, speed = torch.tensor([0, 0, 1, 1]), torch.tensor([10.0, 60.0, 10.0, 60.0])
    nothing = torch.zeros(4, 1, 1)
    windows = Windows(nothing, ahead, nothing, nothing, site, speed)
    models = [lambda w: 0.5 * w.ahead, lambda w: 0 * w.ahead]  # errors 1/4 and 1 of the energy
    told = figures(models, windows)
    assert told["home"] == pytest.approx((0.25 * 5 + 10) / 15)
    assert told["everywhere"] == pytest.approx((0.25 + 1) / 2)
    assert told["home_by_speed"] == pytest.approx({"10": 9.25 / 10, "60": 2 / 5})
    common = figures(models[:1], windows)
    assert common["home"] == common["everywhere"] == pytest.approx(0.25)


def test_as_it_ships_the_scenario_is_its_own_trial():
    shipped = with_overrides(SHIPPED, ["evaluate.every=5"])
    assert settings(SHIPPED, Trial("covariance", 80, "federated", 5, 0)) == shipped
    few = settings(SHIPPED, Trial("last value", 20, "own", 60, 0))
    assert few.task.forecast.base == "last" and few.train.batch_size == 20
    assert few.train.total_steps == 60


def row(how: str, passes: int, seed: int, choice: float, test: float) -> Row:
    return Row("PAD", 80, how, passes, seed, {"home": choice}, {"home": test}, 0, 1.0)


def test_passes_are_chosen_by_the_channels_of_choice_and_the_first_seed_alone():
    rows = [row("own", 5, 0, 0.2, 0.1), row("own", 20, 0, 0.1, 0.4), row("own", 5, 1, 0.01, 0.1)]
    rows += [row("union", 5, 0, 0.3, 0.3)]
    assert best_passes(rows) == {("PAD", 80, "own"): 20, ("PAD", 80, "union"): 5}


def test_so_many_samples_of_each_site_and_speed_are_trained_on():
    data = Data(SHIPPED, 20)
    sites, counts = data.train.site.unique(return_counts=True)
    assert len(sites) == 10 and set(counts.tolist()) == {20} and len(data.test) == 200
    own = data.train.of(3).speed_kmh.unique(return_counts=True)
    assert own[0].tolist() == [10, 30, 60, 100] and set(own[1].tolist()) == {5}
    whole = Data(SHIPPED)
    assert len(whole.train) == 800 and bool((whole.train.history == data.train.history[0]).any())
    for count in (100, 79):  # too many, and not as many of each speed
        with pytest.raises(FedloraError, match=f"{count} samples a site are asked for, and site"):
            Data(SHIPPED, count)


def test_rows_of_one_file_of_channels_are_not_gone_on_with_by_another_of_its_name(tmp_path):
    folder = sharing_folder(tmp_path / "out", SHIPPED, "choice.npz")
    files = {name: str(tmp_path / f"{name}.npz") for name in ("choice", "many")}
    for file in files.values():
        Path(file).write_text("some")
    check_same(folder, {**files, "many": ""})
    check_same(folder, files)
    Path(files["many"]).write_text("others")
    check_same(folder, {**files, "many": ""})
    with pytest.raises(FedloraError, match=r"--many .*many.npz holds other channels than"):
        check_same(folder, files)


def test_channels_of_a_site_that_nobody_trains_on_are_refused(tmp_path):
    """They would be told as another site's."""
    h = np.random.default_rng(0).normal(size=(4, 20, 48))
    keys = ["data.values=h", 'data.axes=["record","time","feature"]']
    for which, last in (("train", "b"), ("test", "c")):
        file = tmp_path / f"{which}.npz"
        np.savez(file, h=h, site=["a", "a", "b", last], speed_kmh=np.full(4, 30.0))
        keys.append(f"data.{which}={file}")
    with pytest.raises(FedloraError, match=r"data.test has records of site c, and data.train has"):
        Data(with_overrides(SHIPPED, keys))


def in_turn(results, trials, run, shared, **options):
    """Run trials here, where each has a process of its own else."""
    assert options == {"workers": 1}
    for trial in results.missing(trials):
        results.add(run(trial, *shared(trial)))


def test_a_study_goes_up_its_ladders_and_on_with_the_best(tmp_path, monkeypatch):
    monkeypatch.setattr(sharing, "run_missing", in_turn)
    rng = np.random.default_rng(0)
    files = []
    for which, count in (("train", 32), ("test", 16), ("choice", 16)):
        h = rng.normal(size=(count, 20, 4)) + 1j * rng.normal(size=(count, 20, 4))
        site = [f"s{number % 2}" for number in range(count)]
        file = tmp_path / f"{which}.npz"
        np.savez(file, h=h, site=site, speed_kmh=np.full(count, 30.0))
        files.append(str(file))
    keys = [f"data.train={files[0]}", f"data.test={files[1]}", "federation.clients=2"]
    keys += ["data.values=h", 'data.axes=["record","time","feature"]', "compute.threads=1"]
    keys += [f"task.forecast.{key}" for key in ("patch=2", "width=8", "features=8")]
    base = with_overrides(SHIPPED, keys)
    paths = {"choice": files[2], "many": ""}
    folder = sharing_folder(tmp_path / "out", base, files[2])
    with folder.held(), pytest.raises(FedloraError, match="run --start 'last value' first"):
        study(folder, base, paths, [Cell(GRU, 16, (1,))], 1)
    with folder.held():
        study(folder, base, paths, [Cell("last value", 16, (1, 2)), Cell(GRU, 16, (1,))], 2)
    lines = (tmp_path / "out" / "trials.jsonl").read_text().splitlines()
    rows = [Row(**json.loads(line)) for line in lines]
    best = best_passes(rows)
    wanted = {Trial("last value", 16, way, n, 0) for way in WAYS for n in (1, 2)}
    wanted |= {Trial(*group, passes, 1) for group, passes in best.items()}
    wanted |= {Trial(GRU, 16, way, 1, 0) for way in WAYS}
    assert {row.trial for row in rows} == wanted and len(best) == 6
    for one in rows:
        alone = one.how == "own"
        assert alone == (one.test["home"] != one.test["everywhere"])
        assert (one.bytes > 0) == (one.how == "federated")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--choice", "absent.safetensors"], "--choice: .*absent.safetensors"),
        (["--choice", "text.safetensors"], "--choice: .*text.safetensors"),
        (["--choice", "text.safetensors", "--samples", "7"], "--samples.* leave nothing to run"),
    ],
)
def test_what_cannot_be_run_is_refused_before_a_folder_is_made(
    tmp_path, monkeypatch, options, said
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.safetensors").write_text("no channels")
    with pytest.raises(FedloraError, match=said):
        sharing.main(["--out", "study", *options])
    assert not (tmp_path / "study").exists()
