"""Generation with the server's blocks: sessions, their cache, and one batch for all of them."""
