"""Channel models: what a client's link is like in each fading block."""
