"""Peers that learn: recurrent networks, a small transformer, and LLM4CP over blocks at hand."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import nn

from fedlora.config import ForecastConfig
from fedlora.tasks.forecast import ChannelBranch

_PATCH = 4
"""Steps of LLM4CP's patches."""
NETWORKS = ("gru", "ends", "lstm", "rnn", "transformer", "llm4cp")
NARROW = {"gru-16": 16, "gru-32": 32}
"""Widths of GRUs that are narrower than ``gru``, so that more averages fit into as many bytes."""


def network(name: str, config: ForecastConfig, model_path: str = "") -> nn.Module:
    """Return a network that predicts normalised steps (samples, horizon, features) of histories.

    Parameters
    ----------
    name
        Of ``NETWORKS`` or ``NARROW``.
    config
        History, horizon and features; of ``ends`` all of it.
    model_path
        Folder of a checkpoint, whose blocks ``llm4cp`` takes, and whose width ``ends`` have.
    """
    if name == "ends":
        return Ends(config, model_path)
    if name == "transformer":
        return Transformer(config)
    if name == "llm4cp":
        return Llm4cp(config, model_path)
    if name in NARROW:
        return Recurrent("GRU", config, hidden=NARROW[name])
    kinds: dict[str, Literal["GRU", "LSTM", "RNN"]] = {"gru": "GRU", "lstm": "LSTM", "rnn": "RNN"}
    return Recurrent(kinds[name], config)


class Recurrent(nn.Module):
    """A recurrent network that goes on with what it predicts, each step as a change of the last.

    Parameters
    ----------
    kind
        Class of ``torch.nn``.
    config
        Horizon and features.
    hidden, layers
        Of the network; LLM4CP's peers have two layers, too.
    """

    def __init__(
        self,
        kind: Literal["GRU", "LSTM", "RNN"],
        config: ForecastConfig,
        hidden: int = 64,
        layers: int = 2,
    ) -> None:
        super().__init__()
        self._horizon = config.horizon
        self.cells = getattr(nn, kind)(config.features, hidden, layers, batch_first=True)
        self.out = nn.Linear(hidden, config.features)

    def forward(self, history: torch.Tensor) -> torch.Tensor:
        """Map (samples, history, features) to (samples, horizon, features)."""
        found, state = self.cells(history)
        steps = [history[:, -1:] + self.out(found[:, -1:])]
        while len(steps) < self._horizon:
            found, state = self.cells(steps[-1], state)
            steps.append(steps[-1] + self.out(found))
        return torch.cat(steps, 1)


class Ends(nn.Module):
    """The split model's front and head with no blocks between them: what the blocks are worth.

    Parameters
    ----------
    config
        Of the forecast.
    model_path
        Folder of a checkpoint, for its width.
    """

    def __init__(self, config: ForecastConfig, model_path: str) -> None:
        super().__init__()
        from transformers import AutoConfig

        from fedlora.tasks.forecast import front_module, head_module

        width = int(AutoConfig.from_pretrained(model_path).hidden_size)
        self._places = config.places
        self.front, self.head = front_module(config, width), head_module(config, width)

    def forward(self, history: torch.Tensor) -> torch.Tensor:
        """Map (samples, history, features) to (samples, horizon, features)."""
        vectors = self.front(history.reshape(len(history), self._places, -1))
        ahead: torch.Tensor = self.head(vectors, history)
        return ahead


class Transformer(nn.Module):
    """A small transformer that nobody has trained before, over all known steps.

    Parameters
    ----------
    config
        History, horizon and features.
    width, heads, layers
        Of the network; as the quickstart decoder's.
    """

    def __init__(
        self, config: ForecastConfig, width: int = 128, heads: int = 4, layers: int = 4
    ) -> None:
        super().__init__()
        self.enter = nn.Linear(config.features, width)
        self.positions = nn.Parameter(0.02 * torch.randn(config.history, width))
        block = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.out = nn.Linear(width, config.features)
        self.mix = nn.Linear(config.history, config.horizon)

    def forward(self, history: torch.Tensor) -> torch.Tensor:
        """Map (samples, history, features) to (samples, horizon, features)."""
        found = self.out(self.blocks(self.enter(history) + self.positions))
        return _mixed(self.mix, history + found)


class Llm4cp(nn.Module):
    """LLM4CP's front, head and training (Liu et al. 2024) over whatever pretrained blocks.

    As theirs: a linear map of each 4 steps within a patch, branches over frequency and delay with
    channel attention whose sum is embedded by a circular convolution of width 3 over time, a map
    over time, the blocks with all steps as places, then maps over features and time; blocks are
    frozen but for norms and learned positions. Not as theirs: the blocks are no GPT-2, branches
    have fewer channels, a sample is normalised by its own statistics and not the batch's, and real
    and imaginary parts of the delay branch are not mixed up.

    Parameters
    ----------
    config
        History, horizon and features; blocks and channels of the branches.
    model_path
        Folder of a checkpoint.
    """

    def __init__(self, config: ForecastConfig, model_path: str) -> None:
        super().__init__()
        from transformers import AutoModel

        self._patch = math.gcd(config.history, _PATCH)
        self.blocks: Any = AutoModel.from_pretrained(model_path, dtype=torch.float32)
        width = int(self.blocks.config.hidden_size)
        for name, parameter in self.blocks.named_parameters():
            parts = name.lower()
            trains = "norm" in parts or "ln_" in parts or "wpe" in parts or "position" in parts
            parameter.requires_grad_(trains)
        self.patches = nn.Linear(self._patch, self._patch)
        self.frequency, self.delay = ChannelBranch(config), ChannelBranch(config)
        self.embed = nn.Conv1d(config.features, width, 3, padding=1, padding_mode="circular")
        self.time = nn.Linear(config.history, config.history)
        self.project = nn.Linear(width, config.features)
        self.mix = nn.Linear(config.history, config.horizon)

    def forward(self, history: torch.Tensor) -> torch.Tensor:
        """Map (samples, history, features) to (samples, horizon, features)."""
        samples, steps, features = history.shape
        grouped = history.reshape(samples, -1, self._patch, features).transpose(2, 3)
        x = self.patches(grouped).transpose(2, 3).reshape(samples, steps, 2, -1)
        real, imaginary = x.unbind(2)
        taps = torch.fft.ifft(torch.complex(real, imaginary), dim=-1, norm="ortho")
        found = self.frequency(torch.stack([real, imaginary], 1))
        found = found + self.delay(torch.stack([taps.real, taps.imag], 1))
        embedded = self.embed(found.transpose(1, 2).reshape(samples, steps, features).mT)
        states = self.blocks(inputs_embeds=self.time(embedded).mT).last_hidden_state
        return _mixed(self.mix, self.project(states))


def _mixed(mix: nn.Linear, steps: torch.Tensor) -> torch.Tensor:
    """Return linear combinations over time of (samples, history, features)."""
    ahead: torch.Tensor = mix(steps.mT).mT
    return ahead
