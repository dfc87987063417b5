"""Bundles in OCI registries: pushed with their signature and evidence, pulled and verified."""

from edgeship.bundle.registry.client import RegistryClient
from edgeship.bundle.registry.pull import Pulled, pull
from edgeship.bundle.registry.push import Pushed, find_evidence, push
from edgeship.bundle.registry.reference import Reference

__all__ = ["Pulled", "Pushed", "Reference", "RegistryClient", "find_evidence", "pull", "push"]
