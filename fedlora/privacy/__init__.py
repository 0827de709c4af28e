"""Differential privacy of what a client uploads: mechanism, accounting, ledger, attacks."""
