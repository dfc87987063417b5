"""Pictures from files, as builds and devices both read them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from edgeship_agent.contract.errors import ConfigError, InputError
from edgeship_agent.contract.manifest import InputContract
from edgeship_agent.processing.arrays import Array

IMAGES: Final = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
_SIXTEEN_BITS: Final = frozenset({"I;16", "I;16B", "I;16L", "I;16N", "I"})


def read_image(file: Path, contract: InputContract) -> Array:
    """Pixels [height, width, 3], or as the contract's shape says: grey, grey with an axis of one, or with alpha.

    They are bytes; of a picture with 16 bits a pixel they are uint16 where the contract takes that.

    Raises:
        ConfigError: no package that decodes it.
        InputError: damaged, or more bits than the contract takes.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ModuleNotFoundError as error:
        raise ConfigError("images cannot be decoded: pillow is not installed", file=file,
                          next_step="pip install edgeship-agent[images]") from error  # fmt: skip
    shape = contract.shape
    channels = 1 if len(shape) == 2 else shape[-1] if len(shape) == 3 else 3
    try:
        with Image.open(file) as image:
            if image.mode in _SIXTEEN_BITS:
                pixels = _sixteen_bits(np.asarray(image), file, contract)
            else:
                pixels = np.asarray(image.convert({1: "L", 4: "RGBA"}.get(channels, "RGB")))
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError("not a readable image", file=file, next_step="take it out or save it again") from error
    return pixels[..., np.newaxis] if pixels.ndim == 2 and len(shape) == 3 else pixels


def _sixteen_bits(pixels: Array, file: Path, contract: InputContract) -> Array:
    """Of a grey picture: as they are, never cut off at 255."""
    if contract.dtype != "uint16":
        raise InputError("a picture with 16 bits a pixel", file=file, expected=contract.dtype, got="uint16",
                         next_step='say dtype = "uint16" in --preprocess FILE.toml, with the steps to the model\'s '
                                   "input, or save the pictures with 8 bits")  # fmt: skip
    return pixels.astype(np.uint16)
