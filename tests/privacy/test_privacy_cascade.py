from __future__ import annotations

import math

import peft
import pytest
import torch
import transformers
from torch import nn

from fedlora.errors import FedloraError
from fedlora.privacy.mechanisms import InsecureNoise, clip_rows, release
from fedlora.privacy.noise_propagation import (
    cut_projection_noise_energy,
    predict_noise_energy,
    signal_to_noise,
    total,
)

SIGMA, C = 1.3, 0.05


def test_probes_meet_the_frobenius_norm_of_the_jacobian() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(6, 5)
    factors = {"A": torch.randn(2, 5), "B": torch.randn(4, 2)}
    mix = torch.randn(4, 4)

    def output(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
        return torch.tanh(inputs @ A.T @ B.T) @ mix

    def vjp(cotangent: torch.Tensor) -> dict[str, torch.Tensor]:
        gradients = torch.func.vjp(output, *factors.values())[1](cotangent)
        return dict(zip(factors, gradients, strict=True))

    jacobians = torch.func.jacrev(output, argnums=(0, 1))(*factors.values())
    predicted = predict_noise_energy(vjp, (6, 4), 0.3, probes=24)
    estimates = [predict_noise_energy(vjp, (6, 4), 0.3, probes=20) for _ in range(40)]
    for (name, found), jacobian in zip(predicted.items(), jacobians, strict=True):
        exact = 0.3**2 * float(jacobian.square().sum())
        assert found.energy == pytest.approx(exact, rel=1e-5)
        assert found.standard_error == 0.0
        energies = torch.tensor([estimate[name].energy for estimate in estimates])
        error = sum(estimate[name].standard_error for estimate in estimates) / 40
        assert float(energies.mean()) == pytest.approx(exact, abs=5 * error / math.sqrt(40))
        assert float(energies.std()) == pytest.approx(error, rel=0.5)


def test_the_closed_form_at_the_cut_meets_the_jacobian() -> None:
    torch.manual_seed(0)
    x, A, B, scale, std = torch.randn(7, 6), torch.randn(3, 6), torch.randn(5, 3), 2.0, 0.4
    both = torch.func.jacrev(lambda A, B: scale * x @ A.T @ B.T, argnums=(0, 1))(A, B)
    predicted = cut_projection_noise_energy(x, A, B, scale, std)
    for energy, jacobian in zip((predicted.A, predicted.B), both, strict=True):
        assert energy == pytest.approx(std**2 * float(jacobian.square().sum()), rel=1e-5)


def test_at_initialisation_all_noise_is_in_b() -> None:
    x, A, B = torch.randn(7, 6), torch.randn(3, 6), torch.zeros(5, 3)
    predicted = cut_projection_noise_energy(x, A, B, 1.0, 0.4)
    assert predicted.A == 0.0
    assert predicted.B > 0.0


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A GPT-2 whose LoRA factors are away from their initial values."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=50, n_positions=16)
    lora = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["c_attn", "c_proj", "c_fc"])
    adapted = peft.get_peft_model(transformers.GPT2Model(config).eval(), lora)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return adapted


def test_prediction_meets_measured_noise_in_every_factor_of_a_transformer(model: nn.Module) -> None:
    rows, length, width, draws = 3, 6, 16, 1500
    factors = {name: p for name, p in model.named_parameters() if p.requires_grad}
    tokens = torch.randint(50, (rows, length), generator=torch.Generator().manual_seed(1))
    gradient = torch.randn(length, width)
    clean = clip_rows(gradient, [length], C).values.float()
    noise = InsecureNoise(0, "test")
    generator = torch.Generator().manual_seed(2)
    measured, predicted = dict.fromkeys(factors, 0.0), []
    for sample in tokens:
        hidden = model(sample[None]).last_hidden_state

        def vjp(cotangent: torch.Tensor, hidden: torch.Tensor = hidden) -> dict[str, torch.Tensor]:
            gradients = torch.autograd.grad(
                hidden, list(factors.values()), cotangent, retain_graph=True
            )
            return dict(zip(factors, gradients, strict=True))

        predicted.append(predict_noise_energy(vjp, hidden.shape, SIGMA * C, probes=length * width))
        estimated = predict_noise_energy(
            vjp, hidden.shape, SIGMA * C, probes=60, generator=generator
        )
        for name, exact in predicted[-1].items():
            assert exact.standard_error == 0.0
            assert abs(estimated[name].energy - exact.energy) < 6 * estimated[name].standard_error
        released = torch.stack(
            [
                release(gradient, [length], clip_norm=C, sigma=SIGMA, noise=noise).values - clean
                for _ in range(draws)
            ]
        ).view(draws, *hidden.shape)
        for chunk in released.split(250):
            added = torch.autograd.grad(
                hidden, list(factors.values()), chunk, retain_graph=True, is_grads_batched=True
            )
            for name, gradients in zip(factors, added, strict=True):
                measured[name] += float(gradients.square().sum()) / draws
    energies = total(predicted)
    assert len(energies) == 2 * 4 * 2  # A and B of four projections in two blocks
    for name, energy in energies.items():
        assert energy.energy == pytest.approx(measured[name], rel=0.05), name


def test_signal_and_noise_energies_are_told_apart() -> None:
    assert signal_to_noise(measured_energy=5.0, noise_energy=1.0) == 4.0
    assert signal_to_noise(measured_energy=0.5, noise_energy=1.0) == 0.0
    assert signal_to_noise(measured_energy=1.0, noise_energy=0.0) == math.inf


def test_a_single_probe_is_refused() -> None:
    with pytest.raises(FedloraError, match="1 probes give no standard error"):
        predict_noise_energy(lambda cotangent: {"x": cotangent}, (2,), 1.0, probes=1)
