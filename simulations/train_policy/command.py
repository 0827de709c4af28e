"""``fedlora train-policy``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedlora.errors import FedloraError
from simulations.options import OverwriteOption, SetOption, open_scenario, require_losses
from simulations.studies.compare.reward import DEFAULT_PRICE
from simulations.train_policy.seeds import FIRST_SEED


def train_policy(
    scenario: Annotated[
        str, typer.Argument(help="A shipped scenario, or the path of a TOML file.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the policy and of its training.")],
    steps: Annotated[
        int, typer.Option(min=0, help="Environment steps: decisions for one client in one round.")
    ] = 640,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the training.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is in --out.")] = False,
    snr: Annotated[str, typer.Option(help="Mean SNRs in dB to draw from.")] = "-5,0,5,10,15",
    channels: Annotated[str, typer.Option(help="Channel models to draw from.")] = "awgn,rayleigh",
    seeds: Annotated[
        int,
        typer.Option(min=1, max=1000, help=f"Seeds of data and partition, from {FIRST_SEED} on."),
    ] = 2,
    price: Annotated[
        float, typer.Option(min=0.0, help="Nats that a whole deadline of air time costs (lambda).")
    ] = DEFAULT_PRICE,
    reward_only: Annotated[
        bool,
        typer.Option(
            "--reward-only",
            help="For the reward alone: bits and the end of a run have no weight of their own.",
        ),
    ] = False,
    plain_ppo: Annotated[
        bool,
        typer.Option("--plain-ppo", help="PPO alone: no warm start and no diffusion, to compare."),
    ] = False,
    set_: SetOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Train the policy of the strategy `airllm` by real runs of split fine-tuning.

    Writes `policy.safetensors`, which the option `policy` of `airllm` takes, and `curves.png`.
    With `--plain-ppo` only the curves: it is what the training is compared with.
    """
    import torch

    from fedlora.storage import held_folder
    from simulations.studies.compare.strategies import parse_snrs_db
    from simulations.train_policy.folder import TrainingFolder
    from simulations.train_policy.setting import Setting

    snrs_db = tuple(parse_snrs_db(snr))
    base = open_scenario(scenario, set_)
    require_losses(base, "strategies are compared by held-out loss")
    torch.set_num_threads(1)
    setting = Setting(
        base,
        seed,
        snrs_db,
        tuple(name.strip() for name in channels.split(",")),
        tuple(range(FIRST_SEED, FIRST_SEED + seeds)),
        price,
        weighted=not (reward_only or plain_ppo),
    )
    try:
        from simulations.train_policy.train import PolicyTraining
    except ImportError as error:
        raise FedloraError(
            f"training a policy needs {error.name}, which is not installed; run "
            "`pip install 'fedlora[policy]'`"
        ) from None
    command = (
        f"fedlora train-policy {scenario} --steps {steps} --seed {seed} --snr={snr} "
        f"--channels {channels} --seeds {seeds} --price {price:g}"
        + (" --reward-only" if reward_only else "")
        + (" --plain-ppo" if plain_ppo else "")
    ) + "".join(f" --set {item}" for item in set_ or [])
    folder = TrainingFolder(out, setting, resume=resume, plain=plain_ppo, overwrite=overwrite)
    with held_folder(folder.path, "a training"):
        PolicyTraining(setting, folder, command=command, plain=plain_ppo).run(steps)
    typer.echo(f"policy: {folder.policy}")
