"""``fedlora compare``: rank strategies over SNRs and seeds, with confidence intervals."""
