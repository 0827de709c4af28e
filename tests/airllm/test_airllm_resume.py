from __future__ import annotations

import pytest

from fedlora.config import with_overrides
from fedlora.errors import FedloraError
from fedlora.scenarios import find_scenario
from simulations.train_policy import replay
from simulations.train_policy.folder import TrainingFolder
from simulations.train_policy.setting import Setting

pytest.importorskip(
    "stable_baselines3", reason="policies are trained with the extra fedlora[policy]"
)
from simulations.train_policy import train
from simulations.train_policy.checkpoint import read_checkpoint
from simulations.train_policy.train import PolicyTraining

EPISODES, STEPS = 3, 12
SMALL = {"GAMES": 4, "CLONE_STEPS": 8, "PLAN_STEPS": 4, "CRITIC_STEPS": 2, "REFINE_UPDATES": 2}


class Killed(BaseException):
    """Ends a training as a signal would."""


@pytest.fixture(scope="module")
def setting():
    scenario = with_overrides(
        find_scenario("quickstart"),
        [
            "privacy.epsilon=none",
            "data.test=",
            "data.max_rows=60",
            "federation.clients=2",
            "lora.r_max=2",
            "train.rounds=2",
            "train.steps=1",
            "train.batch_size=2",
        ],
    )
    return Setting(
        scenario,
        0,
        (0.0, 10.0),
        ("awgn", "rayleigh"),
        (1000,),
        0.2,
    )


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, value in SMALL.items():
        monkeypatch.setattr(train, name, value)
    monkeypatch.setattr(replay, "WARM_UP", 4)  # so that the diffusion is trained on what was done


def trained(path, setting, *, resume=False, plain=False):
    folder = TrainingFolder(path, setting, resume=resume, plain=plain)
    PolicyTraining(setting, folder, command="as always", plain=plain).run(STEPS)
    return folder


@pytest.fixture(scope="module")
def unbroken(setting, tmp_path_factory):
    """Return the folder of a training that nobody broke off."""
    kept = {}

    def of(*, plain=False):
        if plain not in kept:
            kept[plain] = trained(tmp_path_factory.mktemp("whole"), setting, plain=plain)
        return kept[plain]

    return of


def outcome(folder):
    return folder.policy.read_bytes(), (folder.path / "curve.jsonl").read_bytes()


def break_off(monkeypatch, owner, name, call):
    """Let so many calls of something pass, and end the training in the next."""
    calls, own = [], getattr(owner, name)

    def instead(*given, **more):
        calls.append(name)
        if len(calls) > call:
            raise Killed
        return own(*given, **more)

    monkeypatch.setattr(owner, name, instead)


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        # after the warm start, before any episode
        pytest.param(train, "teach_critic", 0, marks=pytest.mark.slow),
        (train.FederationEnv, "step_wait", 3),  # within the second episode
        # the second was kept, but not noted
        pytest.param(TrainingFolder, "write_curve", 1, marks=pytest.mark.slow),
    ],
)
def test_a_training_that_was_broken_off_ends_in_the_same_bytes(
    owner, name, call, setting, unbroken, tmp_path, monkeypatch
):
    expected = outcome(unbroken())
    with monkeypatch.context() as breaking:
        break_off(breaking, owner, name, call)
        with pytest.raises(Killed):
            trained(tmp_path, setting)
    assert outcome(trained(tmp_path, setting, resume=True)) == expected


@pytest.mark.slow
def test_a_training_broken_off_after_each_episode_ends_in_the_same_bytes(
    setting, unbroken, tmp_path, monkeypatch
):
    for episode in range(EPISODES):
        with monkeypatch.context() as breaking:
            break_off(breaking, train, "draw_curves", 0)
            with pytest.raises(Killed):
                trained(tmp_path, setting, resume=episode > 0)
    assert outcome(trained(tmp_path, setting, resume=True)) == outcome(unbroken())


def test_ppo_alone_that_was_broken_off_explores_the_same(setting, unbroken, tmp_path, monkeypatch):
    with monkeypatch.context() as breaking:
        break_off(breaking, train, "draw_curves", 0)
        with pytest.raises(Killed):
            trained(tmp_path, setting, plain=True)
    found = outcome(trained(tmp_path, setting, resume=True, plain=True))
    # Its denoiser is that of the process, and does nothing.
    assert found[1] == outcome(unbroken(plain=True))[1]


def test_a_damaged_checkpoint_is_refused_with_the_mend(unbroken, tmp_path):
    path = tmp_path / "checkpoint.pt"
    assert read_checkpoint(path) is None
    whole = unbroken().checkpoint.read_bytes()
    path.write_bytes(whole)
    assert len(read_checkpoint(path)["curve"]) == EPISODES
    for damaged in (whole[: len(whole) // 2], b"", b"{}"):
        path.write_bytes(damaged)
        with pytest.raises(FedloraError, match=r"checkpoint\.pt is damaged .*remove it"):
            read_checkpoint(path)
