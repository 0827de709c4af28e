"""Which seeds train policies, and which compare them."""

FIRST_SEED = 1000
"""Seeds from here on train policies; comparisons use smaller ones."""
