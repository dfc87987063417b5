"""A detector of our own: scenes, training and the trained file."""
