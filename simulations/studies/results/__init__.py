"""Results of the rank study: ``compare.csv`` of each channel, which ``docs/results.md`` reads."""
