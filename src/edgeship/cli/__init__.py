"""One module per command: options in, results out, no logic."""
