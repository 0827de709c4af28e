"""A run as a Flower ServerApp."""
