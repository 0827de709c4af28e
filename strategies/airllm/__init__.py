"""AirLLM's rank strategy: a policy's coarse latent, refined to ranks by diffusion."""
