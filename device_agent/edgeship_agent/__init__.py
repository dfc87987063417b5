"""Edgeship's device agent: runs models, reports telemetry, installs updates that can always be undone."""

__version__ = "0.1.0"
