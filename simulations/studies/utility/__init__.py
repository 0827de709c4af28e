"""What privacy costs: accuracy over epsilon, for several mechanisms."""
