"""Looking at recordings of links."""
