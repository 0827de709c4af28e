"""One file for each model family: where its parts are and what they are called."""
