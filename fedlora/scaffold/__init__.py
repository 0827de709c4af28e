"""``fedlora new``: a Flower app folder with a rank strategy, and a channel model, of one's own."""
