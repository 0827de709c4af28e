"""What a device writes down for its owner, and how that is read back."""
