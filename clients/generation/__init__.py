"""Generation on a device: tokens, head and sampling stay here, the blocks are the server's."""
