"""The owner's side of a device: its terms, and the one door that everything leaves by."""
