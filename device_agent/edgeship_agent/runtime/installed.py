"""Versions of installed distributions, read as installers write them down.

``importlib.metadata`` says the same and brings mail parsers and archives with it: 2 to 4 MB of a process that stays.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final

#: Folders whose records are remembered, each until something is installed there or removed.
_MOST_FOLDERS: Final = 16
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
        folder = _path(place or os.curdir).absolute()
        try:
            records = _records(folder, folder.stat().st_mtime_ns)
        except OSError:
            continue  # an archive, or gone
        if wanted in records:
            return records[wanted]
    return None


#: Made once, not with every look.
_path: Final = lru_cache(maxsize=_MOST_FOLDERS)(Path)


@lru_cache(maxsize=_MOST_FOLDERS)
def _records(folder: Path, _changed_ns: int) -> Mapping[str, str]:
    """Distribution → version, of one folder."""
    found = [match for file in folder.iterdir() if (match := _RECORD.fullmatch(file.name)) is not None]
    return {_plain(match["name"]): match["version"] for match in reversed(found)}  # the first of a name stays


def _plain(name: str) -> str:
    """One spelling. Source: PEP 503, normalized names."""
    return _SEPARATORS.sub("-", name).lower()
