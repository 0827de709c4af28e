"""How noise is drawn and added, and how labels are randomised."""
