"""Starting Flower for a run, and ending all that was started."""
