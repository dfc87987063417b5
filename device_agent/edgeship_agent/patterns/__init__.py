"""The other ways to serve a model, with the same engine and manifest: batch and streams."""
