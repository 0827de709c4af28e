"""What a run is held to.

An oracle is a function from a ``Trial`` to what is wrong, in a sentence; an empty text where
nothing is, and None where it does not apply. It compares with something that is not fedlora's, or
with a second run.
"""
