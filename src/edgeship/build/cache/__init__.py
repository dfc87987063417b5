"""What builds have worked out before: kept by everything that it depends on, verified when it is read."""

from edgeship.build.cache.store import Cache, Entry, Found, Made

__all__ = ["Cache", "Entry", "Found", "Made"]
