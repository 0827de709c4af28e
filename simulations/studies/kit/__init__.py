"""What all studies share: trials by key, results that a kill leaves whole, one lock, workers."""
