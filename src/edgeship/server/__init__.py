"""The fleet server: registry, ingest, rollouts, drift, API and dashboard in one process over one database."""
