"""Schedulers: which clients take part in a round, and with how much bandwidth."""
