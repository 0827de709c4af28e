"""Forecasts: what is read of csv, npy and npz, and training that equals the undivided model's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from scipy.io import savemat
from support.federation import Federation, relative
from support.owner_device import Device, attack
from support.values import UnsplitValues, scenario, without_tokenizer

from clients.owner import content
from fedlora.check import check_scenario
from fedlora.config import ForecastConfig, scenario_from_toml, scenario_to_toml, with_overrides
from fedlora.errors import FedloraError
from fedlora.scenarios import find_scenario
from fedlora.tasks import task_class
from fedlora.tasks.forecast.lift import Lift
from fedlora.tasks.forecast.modules import ForecastHead

FEATURES, STEPS = 4, 10
SHORT = ["task.forecast.history=6", "task.forecast.horizon=3", "task.forecast.patch=2"]


@pytest.fixture(scope="module")
def bare(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return without_tokenizer(checkpoints["llama"], tmp_path_factory.mktemp("bare") / "llama")


@pytest.fixture(scope="module")
def waves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 24 records of 10 steps and 4 features, and whose each is."""
    rng = np.random.default_rng(0)
    speed, phase = rng.uniform(0.1, 0.9, (2, 24, 1, FEATURES))
    x = 2 + np.sin(7 * phase + speed * np.arange(STEPS)[:, None])
    file = tmp_path_factory.mktemp("waves") / "waves.npz"
    np.savez(file, x=x, site=[f"s{number % 2}" for number in range(24)])
    return file


def forecast(model: Path | str, data: Path, *overrides: str) -> Any:
    plain = ["task.kind=forecast", f"data.train={data}", f"task.forecast.features={FEATURES}"]
    return scenario(Path(model), *plain, *SHORT, *overrides)


def read(data: Path, *overrides: str) -> list[Any]:
    config = forecast("none", data, *overrides)
    return task_class("forecast").records(config, "train", labelled=False)


def samples(config: Any, records: list[Any]) -> list[Any]:
    return task_class("forecast")(config.task).samples(records, None, config.data)


def mse(head: Any, states: torch.Tensor, made: Any) -> torch.Tensor:
    """Return the sum over samples of the mean squared error of normalised numbers."""
    total = torch.zeros(())
    for z, sample in zip(states, made, strict=True):
        history = sample.values.reshape(6, FEATURES)
        steps = head.project(head.lift.down(z)).reshape(6, FEATURES)
        predicted = head.mix.weight @ steps + head.mix.bias[:, None]
        predicted = predicted + head.history.weight @ history
        wanted = (sample.target.steps - sample.target.mean) / sample.target.scale
        total = total + (predicted - wanted).square().mean()
    return total


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.embedding=true", "task.forecast.front=channel"],
        ["train.clip_norm=0.1"],
        ["train.embedding=true", "front.share=round", "task.forecast.width=3"],
        ["train.embedding=true", "front.share=step", "train.clip_norm=0.1", "train.rounds=1"],
    ],
    ids=" ".join,
)
def test_split_training_equals_the_undivided_model(bare, waves, overrides):
    config = forecast(bare, waves, *overrides)
    check_scenario(config)
    federation = Federation(config)
    unsplit = UnsplitValues(federation, mse, config.front.share)
    expected = unsplit.run()
    federation.run()
    assert federation.recorder.losses() == pytest.approx(expected, rel=1e-5)
    for name, factor in federation.server.engine.adapter().items():
        assert relative(factor, unsplit.factors[name].detach()) < 1e-4, name
    for client, front, head in zip(federation.clients, unsplit.fronts, unsplit.heads, strict=True):
        for mine, other in ((client.model.front.embedding, front), (client.head.module, head)):
            for a, b in zip(mine.parameters(), other.parameters(), strict=True):
                assert relative(a.detach(), b.detach()) < 1e-4
    assert federation.recorder.rounds[-1]["metric"] == pytest.approx(
        nmse(unsplit, federation), 1e-4
    )


@pytest.mark.parametrize("front", ["linear", "channel"])
def test_every_gradient_equals_that_of_the_undivided_model(bare, waves, front, monkeypatch):
    one_step = ["train.embedding=true", "train.rounds=1", "train.steps=1"]
    federation = Federation(forecast(bare, waves, *one_step, f"task.forecast.front={front}"))
    engine, found = federation.server.engine, {}
    with torch.no_grad():  # at 0, where training begins, it leaves A without a gradient
        for projection in engine.projections:
            projection.B.normal_(std=0.1)
    unsplit = UnsplitValues(federation, mse)
    adapter_step, end_step = engine.update.optimizer.step, torch.optim.AdamW.step

    def note(parameters: Any) -> None:
        found.update({id(p): p.grad.clone() for p in parameters if p.grad is not None})

    def of_the_adapter(*given: Any) -> Any:
        note([factor for p in engine.projections for factor in (p.A, p.B)])
        return adapter_step(*given)

    def of_an_end(optimizer: Any, *given: Any) -> Any:
        note([p for group in optimizer.param_groups for p in group["params"]])
        return end_step(optimizer, *given)

    monkeypatch.setattr(engine.update.optimizer, "step", of_the_adapter)
    monkeypatch.setattr(torch.optim.AdamW, "step", of_an_end)
    unsplit.run()
    federation.run()
    pairs = []
    for p in engine.projections:
        pairs += [(p.A, unsplit.factors[f"{p.name}.A"]), (p.B, unsplit.factors[f"{p.name}.B"])]
    for client, *ends in zip(federation.clients, unsplit.fronts, unsplit.heads, strict=True):
        for own, other in zip(
            (client.model.front.embedding, client.head.module), ends, strict=True
        ):
            pairs += zip(own.parameters(), other.parameters(), strict=True)
    compared = [(found[id(a)], found[id(b)]) for a, b in pairs if id(b) in found]
    assert len(compared) == len(pairs) and len(pairs) > 2 * len(engine.projections)
    assert all(bool(b.any()) and relative(a, b) < 1e-5 for a, b in compared)


@torch.no_grad()
def nmse(unsplit: UnsplitValues, federation: Federation) -> float:
    """Return the ratio of sums over held-out samples, in units of the data."""
    error = energy = 0.0
    for client, front, head in zip(federation.clients, unsplit.fronts, unsplit.heads, strict=True):
        for sample in client.door.truth(client.held_out):
            e = unsplit.embed(front, [sample])
            z = unsplit.model(inputs_embeds=e[None]).last_hidden_state
            out = head(z, sample.values.reshape(1, 6, FEATURES))[0]
            ahead = sample.target
            got = out * ahead.scale + ahead.mean
            error += float((got - ahead.steps).double().square().sum())
            energy += float(ahead.steps.double().square().sum())
    return error / energy


def test_a_window_is_normalised_by_its_own_history_alone(waves):
    raw = np.load(waves)["x"].astype(np.float32)
    records = read(waves)
    assert records[3]["site"] == "s1"
    made = samples(forecast("none", waves, "task.forecast.stride=1"), records)
    assert len(made) == 24 * 2 and [s.source for s in made[:3]] == [0, 0, 1]
    history, ahead = raw[0, 1:7], raw[0, 7:10]
    expected = (history - history.mean(0)) / history.std(0)
    np.testing.assert_allclose(made[1].values.numpy().reshape(6, 4), expected, atol=1e-5)
    np.testing.assert_allclose(made[1].target.steps.numpy(), ahead)
    together = samples(forecast("none", waves, "task.forecast.normalise=sample"), records)[0]
    both = together.values.numpy()
    assert both.mean() == pytest.approx(0, abs=1e-5) and both.std() == pytest.approx(1, abs=1e-5)
    assert together.target.mean.tolist() == [together.target.mean[0].item()] * 4
    power = samples(forecast("none", waves, "task.forecast.normalise=power"), records)[0]
    assert not power.target.mean.any() and power.values.square().mean() == pytest.approx(1)
    np.testing.assert_allclose(
        power.values.numpy().reshape(6, 4) * power.target.scale.numpy(), raw[0, :6], rtol=1e-5
    )


def test_complex_channels_with_ports_are_samples_of_one_record(tmp_path):
    rng = np.random.default_rng(0)
    h = rng.normal(size=(2, 3, 9, 5)) + 1j * rng.normal(size=(2, 3, 9, 5))  # feature, port, time
    np.save(tmp_path / "h.npy", h)
    config = ['data.axes=["feature","port","time","record"]', "task.forecast.features=4"]
    records = read(tmp_path / "h.npy", *config)
    assert len(records) == 5 and records[0]["values"].shape == (3, 9, 4)
    np.testing.assert_allclose(records[4]["values"][1, :, 0], h[0, 1, :, 4].real, rtol=1e-6)
    np.testing.assert_allclose(records[4]["values"][1, :, 3], h[1, 1, :, 4].imag, rtol=1e-6)
    made = samples(forecast("none", tmp_path, *config), records)
    assert [s.source for s in made] == [i for i in range(5) for _ in range(3)]


@pytest.mark.parametrize("kind", ["v7.mat", "v73.mat", "x.h5", "x.safetensors"])
def test_complex_channels_are_the_same_from_every_format(tmp_path, kind):
    rng = np.random.default_rng(0)
    h = (rng.normal(size=(5, 9, 2)) + 1j * rng.normal(size=(5, 9, 2))).astype(np.complex64)
    file, axes = tmp_path / kind, 'data.axes=["record","time","feature"]'
    if kind == "v7.mat":
        savemat(file, {"h": h, "site": np.arange(5)[:, None]}, do_compression=True)
    elif kind == "x.safetensors":
        parts = np.stack([h.real, h.imag], 2)
        save_file({"h": parts, "site": np.arange(5)}, file)
        axes = 'data.axes=["record","time","feature","feature"]'
    else:
        h5py = pytest.importorskip("h5py", reason="needs fedlora[hdf5]")
        matlab = kind == "v73.mat"
        stored = h.T if matlab else h  # MATLAB's axes are the other way round in HDF5
        if matlab:
            fields = np.zeros(stored.shape, [("real", "f4"), ("imag", "f4")])
            fields["real"], fields["imag"] = stored.real, stored.imag
            stored = fields
        with h5py.File(file, "w", userblock_size=512 if matlab else 0) as out:
            out["h"], out["site"] = stored, np.arange(5)
        if matlab:
            with file.open("r+b") as head:
                head.write(b"MATLAB 7.3 MAT-file")
    records = read(file, axes, "data.values=h")
    assert [record["site"] for record in records] == list("01234")
    found = np.stack([record["values"][0] for record in records])
    np.testing.assert_array_equal(found, np.concatenate([h.real, h.imag], -1))


def test_a_file_that_is_damaged_or_holds_a_struct_is_refused(tmp_path):
    for name in ("x.npz", "x.mat", "x.safetensors", "x.npy"):
        (tmp_path / name).write_bytes(b"no such file" * 40)
        with pytest.raises(FedloraError, match="no arrays of numbers that can be read") as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value)
    savemat(tmp_path / "s.mat", {"h": {"a": np.ones((4, 9, 4))}})
    with pytest.raises(FedloraError, match="of which 0 could be the series"):
        read(tmp_path / "s.mat")


def test_rows_are_cut_into_records_by_series(tmp_path):
    file = tmp_path / "load.csv"
    lines = [f"2026-01-{t:02},{h},{t + 100 * (h == 'b')},{t * t}" for h in "ab" for t in range(20)]
    file.write_text("\n".join(["date,house,load,heat", *lines]))
    keys = ["data.group=house", "task.forecast.features=2"]
    records = read(file, *keys)
    assert len(records) == 4 and [r["house"] for r in records] == ["a", "a", "b", "b"]
    assert records[3]["values"][0, :, 0].tolist() == [*range(109, 118)]
    assert len(read(file, *keys, "data.segment=20")) == 2
    (one, *_) = read(file, *keys, 'data.values=["heat"]', "task.forecast.features=1")
    assert one["values"][0, :, 0].tolist() == [t * t for t in range(9)]


@pytest.mark.parametrize(
    ("made", "overrides", "said"),
    [
        ({"x": np.zeros((4, 5, 4))}, [], "5 time steps, and task.forecast.history.*horizon is 9"),
        ({"x": np.ones((4, 9, 7))}, [], "has 7 numbers a time step.*features is 4; set it to 7"),
        ({"x": np.full((4, 9, 4), np.nan)}, [], "NaN, infinity .* in record 1 of 4; mend"),
        ({"x": np.full((4, 9, 4), 1e300)}, [], "beyond fp32 in record 1 of 4"),
        ({"x": np.ones((2, 4, 9, 4))}, [], r"shape \(2, 4, 9, 4\), and data.axes names 0 axes"),
        ({"x": np.ones((9, 4))}, ['data.axes=["time"]'], r"data.axes names 1 axes; name each"),
        ({"x": np.ones((4, 9, 4)), "y": np.ones((4, 9, 4))}, [], "2 could be the series; name it"),
        ({"x": np.ones((4, 9, 4))}, ["data.values=h"], r"arrays x \(4, 9, 4\); name one of them"),
        ({"x": np.array([[{}]])}, [], "no arrays of numbers that can be read .*without objects"),
        ({"x": np.array([["a"]])}, [], "of which 0 could be the series"),
        ({"x": np.zeros((4, 9, 4))}, [], "record 1 .*3 steps to predict that are all 0"),
    ],
)
def test_arrays_that_are_not_what_the_scenario_says_are_refused(
    bare, tmp_path, made, overrides, said
):
    np.savez(tmp_path / "x.npz", **made)
    with pytest.raises(FedloraError, match=said) as caught:
        check_scenario(forecast(bare, tmp_path / "x.npz", "federation.clients=1", *overrides))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n3,x\n", "record 2 of .* has 'x' in 'b', which is no finite number; mend it"),
        ("a,b\n1,2\n3,nan\n", "record 2 of .* has 'nan' in 'b'"),
        ("a,b\n1,2\n3,4\n", "has 2 time steps, and a record takes 9; lower data.segment"),
        ("a,b\nx,y\n", "no number in its first row; name the columns of the series in data.values"),
    ],
)
def test_rows_that_are_no_series_are_refused(tmp_path, text, said):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(FedloraError, match=said):
        read(tmp_path / "x.csv")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["task.forecast.patch=4"], "patch is 4, which does not divide task.forecast.history 6"),
        (["task.forecast.features=3", "task.forecast.front=channel"], "features is 3; set an even"),
        (
            ["task.forecast.base=pad", "task.forecast.features=3"],
            "features is 3; set an even .* or base",
        ),
        (
            ["task.forecast.base=pad", "task.forecast.base_order=4"],
            "order is 4, .* at most 3; lower",
        ),
        (["task.forecast.history_snr_db=[9,3]"], r"history_snr_db is \[9.*write one ratio, or"),
        (['data.axes=["time","time"]'], "names time 2 times; name it once"),
        (['data.axes=["row"]'], "data.axes has 'row'; name each axis as one of record, port"),
        (["data.segment=8"], "data.segment is 8, and a forecast takes .* = 9 steps"),
    ],
)
def test_a_forecast_that_contradicts_itself_is_refused(tmp_path, overrides, said):
    np.save(tmp_path / "x.npy", np.ones((40, 4)))
    with pytest.raises(FedloraError, match=said):
        read(tmp_path / "x.npy", *overrides)


def test_real_and_imaginary_parts_that_take_turns_are_refused_to_a_channel_front(tmp_path):
    parts = np.random.default_rng(0).normal(size=(6, 9, 2, 3))  # record, time, parts, subcarriers
    keys = ["task.forecast.front=channel", "task.forecast.features=6"]
    keys += ['data.axes=["record","time","feature","feature"]']
    np.save(tmp_path / "good.npy", parts)
    np.save(tmp_path / "odd.npy", parts.swapaxes(2, 3))
    np.testing.assert_allclose(
        read(tmp_path / "good.npy", *keys)[0]["values"][0, 0], parts[0, 0].ravel(), rtol=1e-6
    )
    with pytest.raises(
        FedloraError, match=r"feature axes of 3 and 2, .* put the axis of 2 parts first"
    ):
        read(tmp_path / "odd.npy", *keys)
    read(tmp_path / "odd.npy", *keys[1:])  # another front takes features in any order


def test_keys_of_forecasts_are_written_only_where_they_say_something(waves):
    plain = scenario(Path("m"))
    for word in ("forecast", "values", "axes", "segment", "group", "front.share"):
        assert f"\n{word} = " not in scenario_to_toml(plain).partition("[link]")[0]
        assert f"[{word}" not in scenario_to_toml(plain)
    config = forecast("m", waves, "data.segment=12", 'data.axes=["record","time","feature"]')
    assert scenario_from_toml(scenario_to_toml(config)) == config


def test_a_record_is_known_by_its_numbers_whatever_is_cut_of_it(waves):
    records = read(waves)
    assert len({content(record) for record in records}) == 24
    assert [content(r) for r in records] == [content(r) for r in read(waves, "data.max_rows=24")]
    assert json.loads(content(records[0]))[1:] == ["s0"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["front.share=step"], "front.share is step, and train.embedding is false.*set it to true"),
        (
            ["front.share=round", "train.embedding=true", "privacy.epsilon=8"],
            "uploads what was computed from inputs as they are; under privacy set .* personal",
        ),
    ],
)
def test_a_front_is_shared_only_where_it_trains_and_nothing_is_private(
    bare, waves, overrides, said
):
    with pytest.raises(FedloraError, match=said):
        check_scenario(forecast(bare, waves, *overrides))


def test_a_token_embedding_that_no_frame_holds_is_not_shared():
    shared = ["train.embedding=true", "front.share=round", "privacy.epsilon=none"]
    config = with_overrides(find_scenario("quickstart"), [*shared, "link.max_frame_mib=1"])
    with pytest.raises(
        FedloraError, match=r"embedding takes 2 MiB, where link\.max_frame_mib is 1; raise"
    ):
        check_scenario(config)


def test_noise_is_planned_for_one_sample_a_record(bare, waves):
    noised = ["privacy.epsilon=8", "privacy.release=full", "evaluate.report=true"]
    config = forecast(bare, waves, *noised)
    check_scenario(config)
    assert Federation(config).run().recorder.rounds[-1]["metric"] > 0
    with pytest.raises(FedloraError, match="one place of a sample moves all that it uploads"):
        check_scenario(forecast(bare, waves, *noised, "privacy.unit=token"))
    with pytest.raises(FedloraError, match="gives 2 samples, and noise is planned for one"):
        check_scenario(forecast(bare, waves, *noised, "task.forecast.stride=1"))


def test_an_owner_with_a_limit_says_what_a_record_is(bare, waves, tmp_path, monkeypatch):
    asked = forecast(bare, waves, "privacy.epsilon=8")
    keys = {"data": str(waves), "model": str(bare), "privacy_epsilon": 9.0}
    refused = Device(tmp_path, **keys, privacy_personal_head="true")
    for name in ("text", "label"):
        del refused.keys[name]
    told = attack(refused, monkeypatch, asked, lambda ask, hello: None)
    assert told["reason"] == "terms"
    refused.keys["axes"] = "record,time,feature"
    seen: list[Any] = []
    told = attack(refused, monkeypatch, asked, lambda ask, hello: seen.append(hello))
    assert told == {} and seen[0].fields["rows"] == 24


def test_noise_is_on_the_history_alone_and_the_same_in_any_company(waves):
    records = read(waves)
    clean = samples(forecast("none", waves, "task.forecast.normalise=none"), records)
    noisy = forecast(
        "none", waves, "task.forecast.normalise=none", "task.forecast.history_snr_db=[10]"
    )
    made = samples(noisy, records)
    for one, other in zip(made, clean, strict=True):
        assert torch.equal(one.target.steps, other.target.steps)
        assert not torch.equal(one.values, other.values)
    before, after = (torch.stack([s.values for s in own]) for own in (clean, made))
    ratio = float(before.square().sum() / (after - before).square().sum())
    assert ratio == pytest.approx(10, rel=0.1)  # 10 dB, of 576 numbers
    assert torch.equal(samples(noisy, records[7:8])[0].values, made[7].values)


def test_noise_between_two_ratios_differs_from_sample_to_sample(waves):
    records = read(waves)
    plain = samples(forecast("none", waves, "task.forecast.normalise=none"), records)
    keys = ["task.forecast.normalise=none", "task.forecast.history_snr_db=[0,40]"]
    made = samples(forecast("none", waves, *keys), records)
    noise = [float((a.values - b.values).norm()) for a, b in zip(made, plain, strict=True)]
    assert max(noise) > 10 * min(noise)


def test_a_narrow_front_lifts_by_an_orthonormal_map_that_does_not_train():
    lift = Lift(5, 16)
    torch.testing.assert_close(lift.basis @ lift.basis.T, torch.eye(5))
    vectors = torch.randn(3, 5)
    torch.testing.assert_close(lift.down(lift.up(vectors)), vectors)
    assert not list(lift.parameters()) and not lift.state_dict()
    config = ForecastConfig(width=5, features=4, patch=2)
    narrow, wide = ForecastHead(config, 16), ForecastHead(ForecastConfig(features=4, patch=2), 16)
    assert narrow.project.weight.numel() == 5 * 8 and wide.project.weight.numel() == 16 * 8
    with pytest.raises(FedloraError, match="width is 16, and a vector of the model has 16 numbers"):
        Lift(16, 16)
