"""``fedlora participation``: what more participants a round buy, beside the predicted trend."""
