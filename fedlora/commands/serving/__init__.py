"""``fedlora serve``, and what a device gets of a run that is served."""
