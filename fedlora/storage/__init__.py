"""Files, states and journals that a crash leaves whole."""
