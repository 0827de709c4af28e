"""What an honest-but-curious server can do with what it receives, measured."""
