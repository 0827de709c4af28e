"""``fedlora train-policy``: the policy of the strategy ``airllm``, trained by real runs."""
