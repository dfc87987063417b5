"""Which part of a model goes wrong: a search for the smallest subgraph that still fails."""
