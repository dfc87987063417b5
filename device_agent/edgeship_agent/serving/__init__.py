"""Serving a model: the worker process behind a Unix socket, the client, and the in-process library."""
