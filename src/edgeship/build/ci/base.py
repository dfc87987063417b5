"""The build that another one is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from edgeship.build.schema import SCHEMA_VERSION, BuildDocument
from edgeship_agent.contract.errors import ConfigError, ContractError
from edgeship_agent.contract.wire import read_json

_MAX_BYTES: Final = 64 << 20


def read_base(path: Path | None) -> BuildDocument | None:
    """A former build, from its output folder or its build.json; None where none is named.

    Raises:
        ConfigError: there is no build at that place, or it was written by a newer version.
    """
    if path is None:
        return None
    file = path / "build.json" if path.is_dir() else path
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise ConfigError("too long to be a build.json", file=file, expected=f"at most {_MAX_BYTES} bytes",
                              next_step="name the output folder of a build, or its build.json")  # fmt: skip
        document = read_json(file.read_bytes(), BuildDocument, file=file)
    except OSError as error:
        raise ConfigError(f"no build to compare with: {error.strerror}", file=file,
                          next_step="name the output folder of a build, or its build.json") from error  # fmt: skip
    except ContractError as error:
        raise ConfigError("not a build.json", file=file, got=error.message,
                          next_step="name the output folder of a build, or its build.json") from error  # fmt: skip
    if document.schema_version > SCHEMA_VERSION:
        raise ConfigError("written by a newer edgeship", file=file, key="schema_version",
                          expected=f"at most {SCHEMA_VERSION}", got=document.schema_version,
                          next_step="pip install --upgrade edgeship")  # fmt: skip
    return document
