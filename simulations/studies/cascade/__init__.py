"""How privacy noise reaches each adapter, and what it does to the loss."""
