"""A scenario goes to TOML and back unchanged, and what is wrong in one is named with its mend."""

from __future__ import annotations

import dataclasses
import random
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

from fedlora.config import (
    Scenario,
    load_scenario,
    scenario_from_toml,
    scenario_to_toml,
    with_overrides,
)
from fedlora.errors import FedloraError
from fedlora.scenarios import describe_scenarios, find_scenario, scenario_names

SHIPPED = sorted(Path(str(files("simulations"))).glob("scenarios/*.toml"))
ODD = [
    'quote " inside',
    "back\\slash",
    "line\nbreak",
    "tab\t",
    "\r",
    "",
    "é 漢 🙂",
    "\x00\x1f\x7f",
    "'",
    "#",
]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_scenario_goes_round(path):
    scenario = load_scenario(path)
    text = scenario_to_toml(scenario)
    assert scenario_from_toml(text) == scenario
    assert scenario_to_toml(scenario_from_toml(text)) == text
    check_read(tomllib.loads(path.read_text()), scenario)


def check_read(table, config):
    """Hold every key of a table, and of those in it, to what was read of it."""
    for key, value in table.items():
        own = getattr(config, key)
        if isinstance(value, dict) and dataclasses.is_dataclass(own):
            check_read(value, own)
        else:
            assert own == (tuple(value) if isinstance(value, list) else value)


def test_default_scenario_goes_round():
    assert scenario_from_toml(scenario_to_toml(Scenario())) == Scenario()


@pytest.mark.parametrize("text", ODD, ids=repr)
def test_odd_strings_go_round(text):
    scenario = Scenario()
    scenario = dataclasses.replace(
        scenario,
        data=dataclasses.replace(scenario.data, prompt_separator=text, columns=(text, "b")),
        ranks=dataclasses.replace(
            scenario.ranks, options={"word": text, "odd key": 1, "é": [text]}
        ),
    )
    again = scenario_from_toml(scenario_to_toml(scenario))
    assert again.data == scenario.data
    assert dict(again.ranks.options) == dict(scenario.ranks.options)


def test_random_numbers_go_round_exactly():
    rng = random.Random(1)
    for _ in range(50):
        value = rng.choice([1, -1]) * rng.random() * 10.0 ** rng.randint(-300, 300)
        scenario = dataclasses.replace(
            Scenario(), channel=dataclasses.replace(Scenario().channel, options={"x": value})
        )
        assert scenario_from_toml(scenario_to_toml(scenario)).channel.options["x"] == value


def test_options_keep_their_structure():
    options = {
        "table": [[1, 2], [3]],
        "nested": {"a": {"b": True}},
        "empty": [],
        "list": [{"a": 1}],
    }
    scenario = dataclasses.replace(
        Scenario(), ranks=dataclasses.replace(Scenario().ranks, options=options)
    )
    assert scenario_from_toml(scenario_to_toml(scenario)).ranks.options == options


@pytest.mark.parametrize(
    ("assignment", "section", "key", "value"),
    [
        ("train.rounds=3", "train", "rounds", 3),
        ("train.lr=1", "train", "lr", 1.0),
        ("train.lr=2e-3", "train", "lr", 0.002),
        ("task.kind=causal_lm", "task", "kind", "causal_lm"),
        ("data.train=/a/b c.csv", "data", "train", "/a/b c.csv"),
        ("data.prompt_separator=||", "data", "prompt_separator", "||"),
        ("data.prompt_separator= = ", "data", "prompt_separator", " = "),
        ("data.record_separator='\\n\\n'", "data", "record_separator", "\\n\\n"),
        ('data.record_separator="\\n\\n"', "data", "record_separator", "\n\n"),
        ("lora.targets=q_proj", "lora", "targets", ("q_proj",)),
        ('lora.targets=["q_proj", "v_proj"]', "lora", "targets", ("q_proj", "v_proj")),
        ("evaluate.baseline=false", "evaluate", "baseline", False),
        ("channel.snr_db=[0, 5.5]", "channel", "snr_db", (0.0, 5.5)),
        ("ranks.options.r=4", "ranks", "options", {"r": 4}),
        ("name=a", "", "name", "a"),
        ("seed=7", "", "seed", 7),
    ],
)
def test_override_sets_one_key(assignment, section, key, value):
    changed = with_overrides(Scenario(), [assignment])
    old = getattr(Scenario(), section) if section else Scenario()
    new = getattr(changed, section) if section else changed
    assert getattr(new, key) == value
    assert dataclasses.replace(new, **{key: getattr(old, key)}) == old


def test_overrides_apply_in_order_to_nested_tables():
    scenario = with_overrides(
        Scenario(),
        ["channel.report.error_db=1", "channel.schedule.options.k=2", "channel.report.error_db=3"],
    )
    assert scenario.channel.report.error_db == 3.0
    assert scenario.channel.schedule.options == {"k": 2}


BAD_OVERRIDES = {
    "train.rouns=3": "unknown scenario key train.rouns; did you mean rounds?",
    "trian.rounds=3": "trian",
    "rounds=3": "unknown scenario key rounds",
    "train.rounds": "cannot read --set 'train.rounds'; write it as section.key=value",
    "=3": "cannot read --set '=3'",
    "train=3": "train is 3; it is a table, write [train]",
    "train.rounds=many": "train.rounds is 'many'",
    "train.rounds=2.5": "train.rounds is 2.5",
    "train.rounds=true": "train.rounds is True",
    "train.lr=true": "train.lr is True",
    "train.lr=nan": "train.lr is nan",
    "train.lr=inf": "train.lr is inf",
    "train.lr=0": "train.lr is 0.0; set 1e-30 to 100",
    "train.rounds=0": "train.rounds is 0; set 1 to 999999",
    "train.accumulate=-1": "train.accumulate is -1",
    "train.warmup_steps=-1": "train.warmup_steps is -1",
    "train.schedule=step": "train.schedule is 'step'; choose one of constant, linear, cosine",
    "evaluate.baseline=1": "evaluate.baseline is 1",
    "name=5": "name is 5",
    "name=..": "name is '..'; write some letters",
    "seed=-1": "seed is -1; set 0 to 9223372036854775807",
    "lora.targets=[q_proj]": "cannot read --set 'lora.targets=[q_proj]'; write strings within",
    "lora.targets=[1]": "lora.targets is 1",
    "lora.targets={a=1}": "write a list",
    "lora.targets=[]": "lora.targets is empty",
    "lora.r_max=0": "lora.r_max is 0",
    "lora.dropout=1": "lora.dropout is 1.0",
    "lora.alpha=-1": "lora.alpha is -1.0",
    "head.share=always": "head.share is 'always'; choose one of personal, round, step",
    "task.pool=max": "task.pool is 'max'",
    "task.max_length=1": "task.max_length is 1",
    "data.holdout=1.0": "data.holdout is 1.0",
    "data.max_rows=-2": "data.max_rows is -2",
    "partition.kind=column": "partition.column is empty; name the column",
    "partition.alpha=0": "partition.alpha is 0.0",
    "federation.clients=0": "federation.clients is 0",
    f"federation.clients={10**30}": "set 1 to 100000",
    'python_path="a\\u0000b"': r"python_path is 'a\x00b'; name a folder",
    "federation.clients_per_round=9": "federation.clients_per_round 9 exceeds federation.clients 8",
    "federation.min_clients=0": "federation.min_clients is 0",
    "link.port=70000": "link.port is 70000",
    "link.public_host=münchen.example": "link.public_host is 'münchen.example'; set a host name in",
    "link.public_host=https://a": "link.public_host is 'https://a'",
    "link.step_timeout_s=0": "link.step_timeout_s is 0.0",
    "model.client_front=-1": "model.client_front is -1",
    "compute.threads=-1": "compute.threads is -1",
    "evaluate.every=0": "evaluate.every is 0",
    "channel.snr_db=[]": "channel.snr_db is empty",
    "channel.bits_per_parameter=0": "channel.bits_per_parameter",
    "ranks.options=3": "ranks.options is 3; it is a table",
}


def test_none_unsets_what_may_be_unset_and_nothing_else(tmp_path):
    private = with_overrides(Scenario(), ["privacy.epsilon=8"])
    assert with_overrides(private, ["privacy.epsilon=none"]) == Scenario()
    assert with_overrides(private, ["privacy.epsilon=none", "privacy.sigma=2"]).privacy.sigma == 2
    path = tmp_path / "mine.toml"
    path.write_text('[privacy]\nepsilon = "none"')
    assert load_scenario(path).privacy.epsilon is None
    with pytest.raises(FedloraError, match=r"train\.lr is 'none'; write a number"):
        with_overrides(Scenario(), ["train.lr=none"])


@pytest.mark.parametrize("assignment", BAD_OVERRIDES)
def test_wrong_override_is_one_sentence(assignment):
    with pytest.raises(FedloraError) as caught:
        with_overrides(Scenario(), [assignment])
    assert BAD_OVERRIDES[assignment] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nrounds = ", "not valid TOML"),
        ("[train]\nround = 3", "unknown scenario key train.round; did you mean rounds?"),
        ("[trian]\nrounds = 3", "unknown scenario key trian; did you mean train?"),
        ("[channel.reprt]\nerror_db = 3", "did you mean report?"),
        ("train = 3", "train is 3; it is a table, write [train]"),
        ("[[train]]\nrounds = 3", "it is a table"),
        ('[train]\nrounds = "3"', "train.rounds is '3'"),
        ("[train]\nlr = 2024-01-01", "train.lr is"),
    ],
)
def test_wrong_file_is_one_sentence(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(FedloraError) as caught:
        load_scenario(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(FedloraError, match=r"cannot read scenario .*none\.toml"):
        find_scenario(str(tmp_path / "none.toml"))
    folder = tmp_path / "folder.toml"
    folder.mkdir()
    with pytest.raises(FedloraError, match=r"cannot read scenario .*folder\.toml"):
        find_scenario(str(folder))
    latin = tmp_path / "latin.toml"
    latin.write_bytes('name = "caf\u00e9"'.encode("latin-1"))
    with pytest.raises(FedloraError, match="UTF-8"):
        find_scenario(str(latin))


def test_scenario_is_found_by_name_path_and_text():
    assert "quickstart" in scenario_names()
    by_name = find_scenario("quickstart")
    path = next(path for path in SHIPPED if path.stem == "quickstart")
    assert find_scenario(str(path)) == by_name
    assert find_scenario(scenario_to_toml(by_name)) == by_name
    with pytest.raises(FedloraError, match="did you mean quickstart"):
        find_scenario("quikstart")
    assert all(purpose for _, purpose in describe_scenarios())


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_learning_rate_warms_up_and_decays(schedule):
    """The oracle is torch's own schedulers."""
    import torch

    config = with_overrides(
        Scenario(),
        [
            "train.rounds=4",
            "train.steps=5",
            "train.warmup_steps=4",
            f"train.schedule={schedule}",
            "train.lr=0.5",
            "train.head_lr=0.1",
        ],
    ).train
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.25, 1.0, total_iters=3)
    after = {
        "constant": lambda: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
        "linear": lambda: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=16),
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 16),
    }[schedule]()
    both = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, after], milestones=[4])
    for step in range(20):
        expected = optimizer.param_groups[0]["lr"]
        assert config.learning_rate(step) == pytest.approx(expected, abs=1e-9), step
        assert config.learning_rate(step, head=True) == pytest.approx(expected / 5, abs=1e-9)
        optimizer.step()
        both.step()


TRACES = ("channel.options.path", "channel.options.up_path")
PATHS = ("data.train", "data.test", "model.path", "lora.start", *TRACES)


def _paths(scenario):
    return {
        "data.train": scenario.data.train,
        "data.test": scenario.data.test,
        "model.path": scenario.model.path,
        "lora.start": scenario.lora.start,
        **{key: scenario.channel.options[key.rpartition(".")[2]] for key in TRACES},
    }


def _file_of_paths(folder):
    folder.mkdir()
    lines = ['channel.model = "trace"', *(f'{key} = "sub/{key}"' for key in PATHS)]
    (folder / "mine.toml").write_text("\n".join(lines))
    return folder / "mine.toml"


def test_paths_start_from_the_scenarios_folder_and_are_absolute(tmp_path, monkeypatch):
    path = _file_of_paths(tmp_path / "a")
    for folder in (tmp_path / "a", tmp_path / "b"):
        for key in PATHS:
            (folder / "sub" / key).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "b")  # a file of that name lies in the working directory too
    expected = {key: str(tmp_path / "a" / "sub" / key) for key in PATHS}
    assert _paths(load_scenario(path)) == expected
    changed = with_overrides(load_scenario(Path("../a/mine.toml")), ["seed=1"])
    assert _paths(scenario_from_toml(scenario_to_toml(changed))) == expected


def test_paths_that_are_not_beside_the_scenario_start_from_the_working_directory(
    tmp_path, monkeypatch
):
    path = _file_of_paths(tmp_path / "a")
    for key in PATHS:
        (tmp_path / "b" / "sub" / key).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "b")
    here = {key: str(tmp_path / "b" / "sub" / key) for key in PATHS}
    assert _paths(with_overrides(load_scenario(path), [])) == here
    typed = with_overrides(load_scenario(path), [f"{key}=sub" for key in PATHS])
    assert set(_paths(typed).values()) == {str(tmp_path / "b" / "sub")}


@pytest.mark.parametrize(
    "path",
    ["", "package:x/y", "hub:x/y", "$HERE/x", "~/x", "/x", "org/name", "a\u0000b", "x" * 999],
)
def test_other_paths_are_left_as_they_are(tmp_path, monkeypatch, path):
    for name in ("package:x/y", "hub:x/y", "$HERE/x", "~/x"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    scenario = with_overrides(Scenario(), [f"data.train={path}"])
    assert scenario.data.train == path


def test_a_linked_file_keeps_its_name(tmp_path):
    (tmp_path / "blob").write_text("")
    (tmp_path / "train.csv").symlink_to(tmp_path / "blob")
    (tmp_path / "mine.toml").write_text('data.train = "train.csv"')
    assert load_scenario(tmp_path / "mine.toml").data.train == str(tmp_path / "train.csv")


def test_an_override_that_is_no_utf8_is_named():
    with pytest.raises(FedloraError, match=r"a --set has 'name=\\udcff', which is no UTF-8 text"):
        with_overrides(Scenario(), [b"name=\xff".decode(errors="surrogateescape")])
