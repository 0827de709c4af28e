"""How each key of a scenario is drawn, and which are not.

A key that is added to the configuration is drawn here, or has its reason in ``LEFT_OUT``; a test
asks for it by name.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from fedlora.config import ForecastConfig
from simulations.fuzz.drawing import Drawing
from simulations.fuzz.keys_air import BY_CLIENT, draw_air, draw_ranks
from simulations.fuzz.keys_privacy import draw_privacy, draw_robust
from simulations.fuzz.models import SEPARATOR, has_positions, is_causal, kinds
from simulations.fuzz.records import CLASSES, FORMATS, FORMS

_SERIES = "forecasts are not drawn; tests/tasks holds them to plain PEFT"
LEFT_OUT = {
    **dict.fromkeys(("data.values", "data.group", "data.axes", "data.segment"), _SERIES),
    **dict.fromkeys((f"task.forecast.{f.name}" for f in fields(ForecastConfig)), _SERIES),
    **dict.fromkeys(
        (f"link.{end}{more}" for end in ("end_weight", "end_gradient") for more in ("", "_bits")),
        "oracles know ends in fp32; tests/training holds other codecs",
    ),
    "front.share": "oracles know one front a client; tests/tasks holds it to plain PEFT",
    "python_path": "the fuzzer's own rank strategy lies in the package",
    "model.path": "follows from _model",
    "data.train": "follows from _rows",
    "data.test": "follows from _test_rows",
    "data.columns": "follows from _format",
    "data.record_separator": "follows from _format",
    "data.pattern": "follows from _format",
    "data.text": "the data files have one column of texts, or what follows from _form",
    "data.messages": "follows from _form",
    "data.prompt": "follows from _form",
    "data.completion": "follows from _form",
    "data.split": "saved datasets are not drawn",
    "lora.start": "follows from _start",
    "federation.nodes": "a simulation has none",
    "link.host": "nothing listens in one process",
    "link.port": "nothing listens in one process",
    "link.public_host": "nothing listens in one process",
    "link.give_up_s": "streams do not break in one process",
    "link.max_frame_mib": "frames are not encoded in one process",
    "evaluate.keep": "oracles look at what the last round left; tests/training holds it",
    "evaluate.patience": "oracles count the rounds of the scenario; tests/training holds it",
    "evaluate.generate": "needs an extra; tests/training holds it to transformers",
    "evaluate.generate_tokens": "follows evaluate.generate",
    "compute.device": "the machine's own",
    "compute.edge_hosts": "a matter of Flower's simulation",
    "link.reuse_folder": "a place on the disk; rows are the same there as in memory",
    "compute.reuse_blocks_folder": "a place on the disk; states are the same there as in memory",
    "observe.json_log": "a matter of Flower's run",
    "observe.tensorboard": "needs an extra",
    "observe.mlflow": "needs an extra",
    "observe.mlflow_uri": "needs an extra",
    "observe.wandb": "needs an extra",
    "observe.wandb_mode": "needs an extra",
    "observe.prometheus_port": "would listen on the machine",
    "observe.prometheus_host": "would listen on the machine",
}
"""Keys that ``draw_case`` does not draw, and why."""

_ODD_TARGETS = [".*q_proj", "(q|v)_proj", [], ["all-linear", "q_proj"], ["lm_head"], [""], ["proj"]]


def draw_case(number: int) -> dict[str, Any]:
    """Return the case of a number."""
    drawing = Drawing(number)
    drawing.set("seed", 0, 1, 7, number % 1000, wild=[2**31, 2**63 - 1, -1, 2**63])
    draw_model(drawing)
    draw_data(drawing)
    draw_federation(drawing)
    draw_adapters(drawing)
    draw_training(drawing)
    draw_robust(drawing)
    draw_ranks(drawing)
    draw_air(drawing)
    draw_privacy(drawing)
    draw_rest(drawing)
    if not drawing.wild:
        settle_also(drawing)
    if drawing.style == "plain":
        make_plain(drawing)
    if not drawing.wild:  # enough that each client has some to train on and some to hold out
        drawing.case["_rows"] = max(drawing["_rows"], 4 * drawing["federation.clients"])
    return drawing.case


def make_plain(d: Drawing) -> None:
    """Leave out what keeps a case from being held to plain PEFT, or an epsilon to dp-accounting."""
    sections = ("robust.", "link.", "channel.schedule.", "privacy.", "lora.dropout", "model.dtype")
    d.drop(*[key for key in d.case if key.startswith(sections)], "federation.clients_per_round")
    d.case["train.steps"] = min(2, d["train.steps"])
    d.case["train.rounds"] = min(2, d["train.rounds"])
    if d["ranks.strategy"] not in (None, "uniform", BY_CLIENT):
        d.drop(*[key for key in d.case if key.startswith("ranks.options.")])
        d.case |= {"ranks.strategy": BY_CLIENT, "ranks.options.ranks": [2, 0, 1, 3]}


def draw_model(d: Drawing) -> None:
    """Draw ``model`` and ``task``."""
    language = d.chance(0.35)
    d.set("task.kind", "causal_lm" if language else "classification", wild=["causal", ""])
    models = [k for k in kinds() if not language or d.wild or is_causal(k)]
    d.set("_model", *["quickstart"] * (len(models) // 2), *models)
    d.some(0.12, "model.dtype", "bf16", "bf16", "fp32")
    # those of libraries that are slow to import are tried in tests/split
    d.some(0.12, "model.weights", "bf16", "fp32", wild=["int4", "", 8])
    d.some(0.15, "model.client_front", 1, wild=[2, 3, 4, 9, -1])
    d.some(0.12, "model.client_back", 1, wild=[2, 3, 4, 9])
    if d.wild or not d["model.client_back"]:
        d.some(0.15, "model.server_norm", True)
    pools = ["last", "mean", *([] if is_causal(d["_model"]) else ["cls"])]
    d.some(0.6, "task.pool", *pools, wild=["cls"])
    d.some(0.5, "task.max_length", 2, 3, 5, 12, 30, wild=[0, 1, 64, 65, 128, 1000, 10**30])


def draw_data(d: Drawing) -> None:
    """Draw ``data`` and what its files look like."""
    language = d["task.kind"] == "causal_lm"
    d.set("_rows", 6, 10, 16, 24, 40, wild=[1, 2, 3, 4, 5])
    formats = [form for form in FORMATS if form != "txt" or language or d.wild]
    d.set("_format", "csv", "csv", *formats)
    d.set("_classes", *["plain"] * 5, *CLASSES)
    d.set("_words", 1, 2, 8, 8, 20, 60)
    d.some(0.25, "_test_rows", 1, 2, 5, 12)
    if d["_classes"] == "many":
        d.drop("_test_rows")  # whose classes the training records would lack
    d.some(0.3, "data.holdout", 0.0, 0.1, 0.3, 0.5, wild=[0.9, 0.999, 1.0, -0.1])
    d.some(0.1, "data.max_rows", 12, 100, wild=[1, 5, -1])
    if d["_classes"] == "plain":
        labels = [["A", "B", "C", "D"], ["D", "C", "B", "A", "unseen"]]
        d.some(0.1, "task.labels", *labels, wild=[["A", "B"], ["A"], ["A", "A"]])
    if language:
        d.some(0.3, "data.prompt_separator", SEPARATOR, wild=["||", "nowhere"])
        d.some(0.3, "_form", *FORMS)
    if d["_form"]:
        _draw_form(d)
    d.some(0.05, "data.label", "label", wild=["nope", "lable", "text"])


def _draw_form(d: Drawing) -> None:
    """Draw what goes with records that are no texts."""
    form = d["_form"]
    if d["_model"] == "quickstart" and not d.wild:  # it has no chat template
        form = d.set("_form", "prompt")
    d.set("_format", *(["jsonl"] if form == "messages" else ["csv", "tsv", "jsonl"]))
    chat = ["auto", "no", "yes"] if d["_model"] != "quickstart" else ["auto", "no"]
    if form == "prompt":
        d.some(0.5, "data.chat", *chat, wild=["yes"])
    if not d.wild:
        d.drop("data.prompt_separator")


def draw_federation(d: Drawing) -> None:
    """Draw ``partition``, ``federation`` and ``link``."""
    language, grouped = d["task.kind"] == "causal_lm", d["_format"] != "txt"
    clients = d.set("federation.clients", 1, 2, 3, 5, wild=[4, 6, 12, 50, 0])
    d.some(0.5, "partition.kind", "iid", "dirichlet", "shards", "column")
    if language and not d.wild and d["partition.kind"] != "iid":
        # without labels the groups decide, where there are any
        if grouped:
            d.set("partition.column", "group")
        else:
            d.drop("partition.kind")
    if d["partition.kind"] == "column" or (grouped and d.chance(0.05)):
        d.set("partition.column", "group", "group", "label", wild=["nope"])
    d.some(0.3, "partition.alpha", 0.1, 1.0, 100.0, wild=[0.0, 0.01, -1.0, 1e9])
    d.some(0.2, "partition.shards_per_client", 1, 2, 3, wild=[0, 20])
    d.some(0.2, "partition.min_rows", 1, 2, 3, wild=[0, 8, -3])
    d.some(0.2, "federation.clients_per_round", 1, max(1, min(2, clients)), wild=[99, -1])
    d.some(0.1, "federation.min_clients", 1, max(1, min(2, clients)), wild=[0, 99])
    d.some(0.05, "federation.connect_timeout_s", 1.0, 60.0, wild=[0.0, -1.0, 1e308])
    for kind in ("activation", "representation", "gradient"):
        last = "tokens" if kind == "activation" else "entropy"
        codecs = ["fp32", "bf16", "int8", "rotated", "distinct", last]
        d.some(0.2, f"link.{kind}", *codecs, wild=["fp16", "tokens", "entropy"])
        if d[f"link.{kind}"] == "entropy" and not d.wild:
            d.some(0.5, f"link.{kind}_bits", 2, 3.25, 5, 6.0)
        elif d.wild or d[f"link.{kind}"] == "rotated":
            d.some(0.5, f"link.{kind}_bits", 2, 3, 5, 8, 10, wild=[1, 13, 4.5])
    if d.wild or (not language and d.chance(0.15)):
        d.set("link.r_cut", 0, 3, 3, wild=[1, 2, 5, 4096])
        if d["link.r_cut"] and not d.wild:
            d.set("head.share", "step")
    d.some(0.1, "link.group", 16, 64, 256, wild=[0, 100, 512])
    d.some(0.05, "link.rotation_seed", 1, 2**31 - 1, wild=[-1, 2**31])
    d.some(0.2, "link.reuse", False, wild=[1])
    d.some(0.2, "link.targets_only", False, wild=["yes"])
    if d.wild or (language and d.chance(0.2)):
        d.set("link.keep", 0.3, 0.8, wild=[0, -1, 1.5, 0.001])
    d.some(0.1, "link.reuse_mib", 64, 4096, wild=[0, 1.5])
    d.some(0.1, "link.residual_mib", 0, 512, wild=[-1, 1.5, 1 << 21])
    d.some(0.05, "link.step_timeout_s", 120.0, 600.0, wild=[0.0, 1e30])
    d.some(0.05, "link.round_timeout_s", 0.0, 600.0, wild=[-1.0, 1e30])
    d.some(0.05, "link.max_misses", 1, 3, wild=[0, 2**63])
    d.some(0.05, "link.patience", 0.0, 0.3, wild=[-1.0, float("nan")])


def draw_adapters(d: Drawing) -> None:
    """Draw ``lora``."""
    d.some(0.6, "lora.r_max", 1, 2, 3, 4, 8, wild=[0, 64, 10**30])
    d.some(0.3, "lora.alpha", 1.0, 16.0, 0.5, wild=[0.0, 1e4, 1e308])
    d.some(0.15, "lora.dropout", 0.1, 0.5, wild=[0.99, 1.0])
    # numbers stand for ends of names of the model's linear modules
    d.some(0.3, "lora.targets", ["all-linear"], [0], [0, 1], [2], [3, 5], wild=_ODD_TARGETS)
    d.some(0.12, "lora.freeze_a", True)
    d.some(0.12, "_start", 1, 2, "mixed", wild=[9])
    _draw_also(d)
    if d["_start"] and not d.wild:  # it adapts all linear modules of all blocks
        d.drop("lora.targets", "model.client_front", "model.client_back")
        if d["_start"] != 1:
            d.set("lora.r_max", 2, 3, 8)


def _draw_also(d: Drawing) -> None:
    """Draw ``lora.also``, which asks for blocks in fp32; what else it excludes: ``settle_also``."""
    learned = (["positions"], ["norm", "positions"]) if has_positions(d["_model"]) else ()
    d.some(0.15, "lora.also", ["norm"], *learned, wild=[["positions"], ["norm", "norm"], ["bias"]])


def settle_also(d: Drawing) -> None:
    """Leave out what a run that trains norms and positions refuses."""
    if not d["lora.also"]:
        return
    d.drop("model.dtype", "model.weights", "robust.average", "robust.momentum", "robust.mix")
    d.drop("robust.hostile", *[key for key in d.case if key.startswith("robust.options.")])
    d.drop("compute.device_map", "compute.max_memory", "compute.reuse_blocks")
    d.drop("compute.reuse_blocks_mib", "channel.deliver_every")
    if "positions" in d["lora.also"]:
        d.drop("model.client_front")


def draw_training(d: Drawing) -> None:
    """Draw ``train`` and ``head``."""
    d.set("train.rounds", 1, 1, 2, 2, 3, wild=[0, 10**30])
    d.set("train.steps", 1, 1, 2, 2, 3, wild=[0, -1])
    d.some(0.6, "train.batch_size", 1, 2, 3, 5, 40, wild=[0, 10**9])
    d.some(0.5, "train.lr", 1e-3, 1e-2, 0.1, wild=[1e-12, 10.0, 1e6, 0.0, float("inf")])
    d.some(0.2, "train.head_lr", 0.05, 1e-4, wild=[1e5, -1.0])
    d.some(0.2, "train.warmup_steps", 1, 2, 5, 100, wild=[-1, 2**63])
    d.some(0.5, "train.schedule", "constant", "linear", "cosine", wild=["step"])
    d.some(0.2, "train.weight_decay", 0.01, 0.5, wild=[100.0, -0.1])
    d.some(0.25, "train.clip_norm", 1.0, 0.01, 1e-9, wild=[1e9, -1.0])
    d.some(0.25, "train.accumulate", 2, 3, wild=[0])
    d.some(0.15, "train.embedding", True)
    d.some(0.2, "train.overlap", True)
    d.some(0.6, "head.share", "personal", "round", "step", "step", wild=["always"])
    d.some(0.15, "head.train", "yes", "no", "auto")


def draw_rest(d: Drawing) -> None:
    """Draw ``evaluate``, ``compute``, ``observe`` and the name."""
    d.some(0.2, "evaluate.every", 1, 2, 9, wild=[0])
    d.some(0.3, "evaluate.batch_size", 1, 2, 32, wild=[0])
    d.some(0.05, "evaluate.max_rows", 1000, wild=[0, 1])
    d.some(0.15, "evaluate.baseline", True)
    d.some(0.15, "evaluate.scores", True)
    d.some(0.2, "compute.checkpoint", True)
    d.some(0.25, "compute.reuse_blocks", True)
    if d["compute.reuse_blocks"]:
        d.some(0.2, "compute.reuse_blocks_mib", 1, 64, wild=[0, 1.5])
    d.some(0.3, "compute.prepack_mib", 0, 0, 1, 64, wild=[-1, 1.5])
    d.some(0.04, "compute.threads", 1, 2, wild=[0, 10**30, -1])
    if d["compute.checkpoint"]:
        d.some(0.3, "compute.device_map", {"disk": "0"}, {"disk": "1-2"}, wild=[{"disk": "9"}])
        if d["compute.device_map"] is None:
            sizes = ({"cpu": "1KiB"}, {"cpu": "1GiB"}, {"cpu": "150KB"})
            d.some(0.2, "compute.max_memory", *sizes, wild=[{"cpu": "much"}])
    if d["compute.device_map"] == {"disk": "0"} and not d.wild:
        d.drop("model.client_front")
    d.some(0.05, "observe.status_every_s", 0.5, 1.0, wild=[0.0, 1e308])
    d.some(0.05, "name", "a b", "naïve ünïcode", wild=["", "a/b", "x" * 300])
