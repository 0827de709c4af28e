"""Channel state information: measured and generated trajectories, and predicting them."""
