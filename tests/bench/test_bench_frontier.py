"""The plot of quality over bits: seeds are compared with fp32 of the same seed, and come back."""

from __future__ import annotations

import pytest
from PIL import Image
from scipy import stats

from fedlora.errors import FedloraError
from fedlora.storage.files import append_line
from simulations.bench.bits import frontier


def row(setting: str, seed: int, to_raw: float, perplexity: float) -> dict[str, object]:
    return {"setting": setting, "seed": seed, "to_raw": to_raw, "perplexity": perplexity}


def test_each_seed_is_held_against_fp32_with_the_same_seed():
    name = "tokens, entropy 4.7, 3.2"
    rows = [row("fp32", seed, 0.3, 5.0 + seed) for seed in range(3)]
    lost = [0.5, 0.9, 0.6]
    rows += [
        row(name, n, 0.02 + n / 1000, (5.0 + n) * (1 + own / 100)) for n, own in enumerate(lost)
    ]
    rows.append(row(name, 7, 0.9, 9.0))  # no fp32 of that seed
    exact, few = frontier.points(rows)
    assert exact.lost == [0.0] * 3 and exact.share == pytest.approx(30)
    assert few.share == pytest.approx(2.1) and few.lost == pytest.approx(lost)
    low, high = stats.t.interval(0.95, 2, 0, stats.sem(lost))
    assert few.interval == pytest.approx((high - low) / 2)
    assert frontier.Point(name, 2.0, lost[:2]).interval is None


def test_the_committed_rows_are_drawn_and_others_are_refused(tmp_path):
    frontier.main(tmp_path / "plot.png", frontier.ROWS, 0, None)
    with pytest.raises(FedloraError, match="exists; replace it with --overwrite"):
        frontier.main(tmp_path / "plot.png", frontier.ROWS, 0, None)
    assert Image.open(tmp_path / "plot.png").size[0] > 500
    assert {point.name for point in frontier.points(frontier.read(frontier.ROWS))} >= {"fp32"}
    append_line(tmp_path / "other.jsonl", row("fp16", 0, 0.3, 5.0), sync=False)
    with pytest.raises(FedloraError, match="something else than rows of this study"):
        frontier.read(tmp_path / "other.jsonl")


def test_a_file_without_rows_is_no_plot(tmp_path):
    with pytest.raises(FedloraError, match="holds no seed of fp32"):
        frontier.main(tmp_path / "plot.png", tmp_path / "none.jsonl", 0, None)
    assert not (tmp_path / "plot.png").exists()


def test_settings_are_chosen_by_name_or_by_how_it_begins():
    name = "tokens, entropy 4.7, 3.2"
    assert frontier.choose([name, "rotated"]) == ["fp32", "rotated 8, entropy 4.7, 3.2", name]
    assert len(frontier.choose(["tokens"])) > 3 and frontier.choose([""]) == list(frontier.SETTINGS)
    with pytest.raises(FedloraError, match="--only is 'token, 5', as no setting begins"):
        frontier.choose(["token, 5"])
