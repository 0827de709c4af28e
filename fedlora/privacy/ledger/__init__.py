"""What each record has spent, on the disk of its owner."""
