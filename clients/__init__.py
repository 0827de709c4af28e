"""The edge side of fedlora: what runs where the data is."""
