from __future__ import annotations

import pytest
import torch

from strategies.airllm import add_noise, sample
from strategies.airllm.sampler import alpha_bar, ddim_step, timesteps

diffusers = pytest.importorskip("diffusers", reason="diffusers is needed as the oracle")


@pytest.fixture(scope="module")
def scheduler():
    return diffusers.DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=2e-2,
        beta_schedule="scaled_linear",
        clip_sample=True,
        set_alpha_to_one=True,
        prediction_type="epsilon",
    )


def test_alpha_bar_has_the_published_anchors():
    places = [0, 250, 500, 750, 999]
    expected = torch.tensor([0.9999, 0.82001, 0.331275, 0.03815, 0.000733], dtype=torch.float64)
    torch.testing.assert_close(alpha_bar()[places], expected, rtol=0, atol=5e-6)


def test_fifty_steps_visit_the_published_timesteps():
    visited = timesteps(50)
    assert visited[:4] == [999, 978, 958, 937]
    assert visited[-4:] == [61, 40, 20, 0]
    assert len(visited) == 50


@pytest.mark.parametrize("steps", [4, 50])
def test_a_step_equals_that_of_diffusers_with_eta_0(scheduler, steps):
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 7, 2, generator=generator)
    visited = scheduler.timesteps.tolist()
    for timestep, following in zip(visited, [*visited[1:], None], strict=True):
        noise = torch.randn(x.shape, generator=generator)
        # The noise that was given is kept where x0 is clipped, as in AirLLM's code.
        # diffusers computes its schedule in single precision, hence the tolerance.
        expected = scheduler.step(noise, timestep, x, eta=0.0, use_clipped_model_output=False)
        if following is None:
            torch.testing.assert_close(
                ddim_step(x, noise, timestep, None), expected.pred_original_sample
            )
            break
        torch.testing.assert_close(
            ddim_step(x, noise, timestep, following), expected.prev_sample, rtol=1e-4, atol=1e-5
        )
        x = expected.prev_sample


def test_the_forward_process_equals_that_of_diffusers(scheduler):
    generator = torch.Generator().manual_seed(1)
    x, noise = (torch.randn(5, 4, 2, generator=generator) for _ in range(2))
    steps = torch.tensor([0, 10, 500, 750, 999])
    torch.testing.assert_close(
        add_noise(x, noise, steps), scheduler.add_noise(x, noise, steps), rtol=1e-5, atol=1e-6
    )


def test_a_denoiser_that_knows_the_answer_recovers_it():
    wanted = torch.tensor([[0.3, -0.8, 1.0]])

    def predict(x, timestep, conditioned):
        share = alpha_bar()[timestep].item()
        return (x - share**0.5 * wanted) / (1 - share) ** 0.5

    start = torch.randn(1, 3, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(sample(start, predict, 4, 1.5), wanted, rtol=1e-3, atol=1e-3)


def test_guidance_moves_away_from_the_unconditional_noise():
    seen = []

    def predict(x, timestep, conditioned):
        seen.append(conditioned)
        return torch.full_like(x, 1.0 if conditioned else 0.0)

    start = torch.zeros(1, 2)
    strong = sample(start, predict, 1, 2.0)
    assert seen == [True, False]
    torch.testing.assert_close(strong, ddim_step(start, torch.full((1, 2), 2.0), 999, None))
