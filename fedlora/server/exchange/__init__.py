"""What goes to the clients and comes back, and who takes part in it."""
