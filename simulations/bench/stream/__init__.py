"""The stream by itself: what an exchange takes, and what idle streams do."""
