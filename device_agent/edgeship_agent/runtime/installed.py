"""Versions of installed distributions, read as installers write them down.

``importlib.metadata`` says the same and brings mail parsers and archives with it: 2 to 4 MB of a process that stays.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_SEPARATORS: Final = re.compile(r"[-_.]+")
#: ``NAME-VERSION.dist-info``, or what older tools and Debian write. Source: PyPA, recording installed projects.
_RECORD: Final = re.compile(r"(?P<name>[^-]+)-(?P<version>[^-]+)(?:-py[0-9.]+)?\.(?:dist|egg)-info")


def installed_version(distribution: str, places: Iterable[str] | None = None) -> str | None:
    """Version of a distribution, or None where it is not installed.

    Args:
        distribution: its name, however it is spelt.
        places: folders to look into; None for those that modules are imported from.

    >>> installed_version("no-such-thing") is None
    True
    """
    wanted = _plain(distribution)
    for place in sys.path if places is None else places:
        try:
            names = [file.name for file in Path(place or os.curdir).iterdir()]
        except OSError:
            continue  # an archive, or gone
        for name in names:
            found = _RECORD.fullmatch(name)
            if found is not None and _plain(found["name"]) == wanted:
                return found["version"]
    return None


def _plain(name: str) -> str:
    """One spelling. Source: PEP 503, normalized names."""
    return _SEPARATORS.sub("-", name).lower()
