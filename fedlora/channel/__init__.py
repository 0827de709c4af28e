"""The air interface: channels, rates, air time and who may send."""
