"""The server: compute, rounds, and the Flower ServerApp."""
