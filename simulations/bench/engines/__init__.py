"""Two of the server's engines in turn: what one way of computing saves beside another."""
