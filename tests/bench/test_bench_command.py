"""``fedlora bench --quick`` runs every experiment, and its JSON holds figures with units."""

from __future__ import annotations

import json
import math
from io import StringIO

import pytest
from rich.console import Console

from fedlora.errors import FedloraError
from simulations.bench.beside.few_bits import forms
from simulations.bench.command import bench
from simulations.bench.context import QUICK, Figure, Settings
from simulations.bench.tables import print_figures

UNITS = {
    "bit",
    "points",
    "tokens/s",
    "ratio",
    "relative",
    "s",
    "s/step",
    "ms",
    "MiB",
    "KiB",
    "streams",
    "imported",
    "tokens",
    "blocks",
}
CODECS = (
    *("int8", "rotated_8", "rotated_8_group_16", "rotated_9_group_16", "rotated_10"),
    *("bf16", "entropy_6", "fp32"),
)
FEW_BITS = {
    f"{name}.{whose}.{measured}"
    for name in (*CODECS, *(f"{c}_after_norm" for c in CODECS), "int8_both_ways_after_norm")
    for whose in ("own", "people")
    for measured in ("agreement", "bits_a_token")
    if not (name.startswith("fp32") and measured == "agreement")
}
SLOW_LINK = {
    f"round_trip_{milliseconds}_ms.{texts}.{measured}"
    for milliseconds in (50, 0)
    for texts in ("people", "nothing_repeats")
    for measured in ("drafts_to_none", "tokens_an_exchange")
}
LEAVE_EARLY = {"after_blocks"} | {
    f"at_{at}.{measured}"
    for at in ("0.3", "0.5", "0.7", "0.9", "0.99")
    for measured in ("to_all_blocks", "tokens_a_second", "left_early", "agreement")
}
CONTEST = {"split", "unsplit", "split_to_unsplit", "loss_difference"}
TEXT = {"split", "padded", "sorted", "split_to_padded", "split_to_sorted", "loss_difference"}
IN_TURN = {"in_turn", "split_to_in_turn", "in_turn_to_unsplit"}
BITS = {
    *("best_to_raw", "best_to_raw_16_bit", "with_head_to_raw", "fp32_to_raw", "codec_to_run"),
    *("bits_a_sample", "to_fedavg_lora", "to_fedavg_lora_delivered_each_round", "accuracy"),
    *("accuracy_of_fedavg_lora", "accuracy_lost", "edgeflowertune_to_fedavg_lora"),
}
REUSE = ("kept", "kept_to_computed_anew", "kept_to_all_blocks_trained", "loss_difference")
OTHERS = (
    {
        f"edge.gpt2.{task}.{measured}"
        for task in ("classification", "causal_lm")
        for measured in ("peak_resident", "import", "import_cpu", "heavy_packages")
    }
    | {
        "scale.minilm.stream",
        "scale.minilm.in_process",
        "scale.minilm.stream_to_in_process",
        "scale.minilm.split_to_unsplit",
        "scale.minilm.peak_resident",
        "robust.decoder.mean",
        "robust.decoder.median_to_mean",
        "robust.decoder.trimmed_mean_to_mean",
        "robust.decoder.norm_filter_to_mean",
        "robust.decoder.median_with_momentum_to_mean",
        "stream.exchange.tls",
        "stream.exchange.in_process",
        "stream.exchange.tls_each",
        "stream.exchange.in_process_each",
        "stream.idle.streams",
        "stream.idle.server",
        "stream.idle.server_per_stream",
    }
    | {
        f"overlap.gpt2.{link}.{measured}"
        for link in ("in_process", "own_links_20_mbit", "shared_link_20_mbit")
        for measured in ("halves", "halves_to_whole", "loss_difference")
    }
    | {f"reuse.decoder.{name}" for name in REUSE}
    | {f"weights.gpt2.{form}.{name}_to_fp32" for form in forms() for name in ("bytes", "speed")}
    | {f"weights.quickstart.{form}.loss_to_fp32" for form in forms()}
    | {f"generate.gpt2.few_bits.{name}" for name in FEW_BITS}
    | {f"generate.gpt2.leave_early.{name}" for name in LEAVE_EARLY}
    | {f"generate.gpt2.slow_link.{name}" for name in SLOW_LINK}
    | {
        f"generate.gpt2.over_tls.{measured}"
        for measured in (
            *("single_to_hf", "single_to_hf_processor_time", "single_a_token_ms"),
            "single_tokens_as_hf",
        )
    }
    | {
        f"generate.gpt2.in_process.default_malloc.{measured}"
        for measured in (
            *("server_batched_to_in_turn", "mixed_to_equal_ranks", "batched_to_in_turn"),
            *("server_batched_to_in_turn_processor_time", "mixed_to_equal_ranks_processor_time"),
            *("batched_to_in_turn_processor_time", "single_to_hf_processor_time"),
            *("single_to_hf", "single_tokens_as_hf", "batched", "single", "hf"),
            *("ttft_ms", "ttft_p95_ms", "between_tokens_ms", "between_tokens_p95_ms"),
        )
    }
)


def expected_names() -> set[str]:
    speed = set()
    for malloc in QUICK.mallocs:
        for rows in (QUICK.speed_rows, 1):
            prefix = f"speed.gpt2.in_process.{malloc}.rows_{rows}."
            speed |= {prefix + name for name in CONTEST | IN_TURN}
        prefix = f"speed.gpt2.tls.{malloc}.rows_{QUICK.speed_rows}."
        speed |= {prefix + name for name in CONTEST}
        for link in ("in_process", "tls"):
            speed |= {f"text.sst2-minilm.{link}.{malloc}.{name}" for name in TEXT}
    return speed | OTHERS | {f"bits.quickstart.{name}" for name in BITS}


@pytest.mark.slow
@pytest.mark.e2e
def test_quick_writes_every_figure_finite_and_with_its_unit(tmp_path, capsys):
    file = tmp_path / "bench.json"
    bench(json_file=file, quick=True)
    content = json.loads(file.read_text())
    figures = content["figures"]
    assert set(figures) == expected_names()
    for figure in figures.values():
        assert math.isfinite(figure["value"])
        assert figure["unit"] in UNITS
    for name, figure in figures.items():
        if name.endswith("loss_difference"):
            assert figure["value"] < 1e-5
        if name.endswith("heavy_packages"):
            assert figure["value"] == 0
    assert figures["stream.idle.streams"]["value"] == QUICK.idle_streams
    assert content["settings"]["tiny"] is True
    for facts in content["machine"].values():
        assert facts["cores"] >= 1
        assert facts["torch_threads"] >= 1
        assert {"torch", "transformers", "peft"} <= set(facts["versions"])
    assert "speed in tokens/s" in capsys.readouterr().out


def test_an_unknown_experiment_is_refused_with_the_names_there_are():
    with pytest.raises(FedloraError, match=r"begins with 'sped'.*speed\.gpt2\.in_process"):
        bench(only="sped")


def test_an_unwritable_json_file_is_refused_before_anything_is_measured(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FedloraError, match=r"bench\.json"):
        bench(json_file=tmp_path / "file" / "bench.json", quick=True)


def test_targets_are_judged_and_figures_must_be_finite():
    assert Figure("a", 0.96, "ratio", at_least=0.95).met is True
    assert Figure("a", 0.94, "ratio", at_least=0.95).met is False
    assert Figure("a", 451.0, "MiB", at_most=450.0).met is False
    assert Figure("a", 1.0, "s").met is None
    with pytest.raises(ValueError, match="figure a is nan"):
        Figure("a", math.nan, "s")


def test_tables_fit_a_terminal_and_show_every_figure():
    figures = [
        Figure("speed.gpt2.in_process.malloc_without_mmap.rows_4.split", 1234.5, "tokens/s"),
        Figure("speed.gpt2.in_process.malloc_without_mmap.rows_4.unsplit", 987.0, "tokens/s"),
        Figure("edge.gpt2.causal_lm.heavy_packages", 0, "imported", at_most=0),
    ]
    out = StringIO()
    print_figures(figures, Console(file=out, width=80))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    for shown in ("1,234", "987", "at most 0", "imported"):
        assert shown in text


def test_full_sizes_are_those_that_the_targets_name():
    settings = Settings()
    assert (settings.speed_clients, settings.speed_rows, settings.speed_length) == (4, 4, 128)
    assert settings.mallocs == ("default_malloc", "malloc_without_mmap")
    assert (settings.edge_rows, settings.edge_length) == (4, 64)
    assert (settings.scale_clients, settings.scale_rows, settings.scale_length) == (64, 4, 32)
    assert (settings.exchange_bytes, settings.idle_streams) == (1_000_000, 256)
