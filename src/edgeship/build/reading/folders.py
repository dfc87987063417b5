"""Folders of samples: one sub-folder per class, each sample an image, a sound or an array."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from edgeship.build.reading.archives import load_array
from edgeship.build.reading.found import HALVES, Read
from edgeship.build.reading.labels import Answers
from edgeship.build.reading.listed import listed_labels
from edgeship_agent.contract.errors import InputError
from edgeship_agent.contract.manifest import InputContract
from edgeship_agent.patterns.pictures import IMAGES, read_image
from edgeship_agent.patterns.sound import SOUNDS, read_sound
from edgeship_agent.runtime.engine import Array

_ARRAYS: Final = frozenset({".npy"})
SAMPLES: Final = IMAGES | SOUNDS | _ARRAYS
#: What file browsers and shells leave behind.
_LITTER: Final = frozenset({"thumbs.db", "desktop.ini"})
#: Folder of resource forks in archives that macOS packs.
_FORKS: Final = "__MACOSX"
#: Tag of the way a camera was held. Source: EXIF 2.32, 4.6.4.A, Orientation; 1 is upright.
_ORIENTATION: Final = 0x0112
_MOST_NAMED: Final = 3
#: Folders of a data set that are no classes: samples, and what belongs to them.
_KINDS: Final = frozenset({"images", "image", "imgs", "img", "jpegimages", "masks", "mask", "labels", "annotations",
                           "segmentationclass", "gt", "groundtruth"})  # fmt: skip


def read_folder(path: Path, contracts: Sequence[InputContract], role: str = "") -> Read:
    """The samples of a folder, in the order of classes and names.

    Classes are its sub-folders in alphabetical order, as the loaders of Keras and torchvision take them, whatever lies
    below each; without sub-folders labels are those of a table that names the files, if there is one.

    Args:
        path: of the folder.
        contracts: of the model's inputs.
        role: ``calibration`` or ``evaluation``.

    Raises:
        InputError: the model has several inputs, a sample cannot be read, or the folder holds halves of a data set.
    """
    if len(contracts) != 1:
        raise InputError("a folder feeds a model with one input", file=path,
                         expected="an .npz file with one array per input", got=f"{len(contracts)} inputs",
                         next_step="save the samples with numpy.savez, one array per input name")  # fmt: skip
    classes = classes_in(path)
    found = [(file, label) for label, files in enumerate(classes.values()) for file in files]
    labelled = bool(found)
    if not labelled:
        found = [(file, 0) for file in samples_in(path)]
    files = [file for file, _ in found]
    _check_one_kind(path, files)
    given, table = (Answers(), None) if labelled else _listed(path, files, role)
    return Read(
        samples=tuple({contracts[0].tensor: read_file(file, contracts[0])} for file in files),
        labels=tuple(label for _, label in found) if labelled else given.labels,
        class_names=tuple(classes) if labelled else given.class_names,
        targets=given.targets,
        files=tuple(str(file.relative_to(path)) for file in files),
        notes=(*given.notes, *_unread(path, [*files, *([table] if table else [])]), *_image_notes(files)),
    )


def _listed(path: Path, files: Sequence[Path], role: str) -> tuple[Answers, Path | None]:
    """Labels of a table in the folder; calibration data needs none, so there one that does not fit does no harm."""
    try:
        return listed_labels(path, files)
    except InputError:
        if role != "calibration":
            raise
        return Answers(), None


def classes_in(path: Path) -> dict[str, list[Path]]:
    """Sub-folders of a folder in alphabetical order, and the samples below each; a class may have none.

    Raises:
        InputError: they are halves or kinds of files of a data set.
    """
    classes = sorted(folder for folder in path.iterdir() if folder.is_dir() and not _hidden(folder, path))
    _check_no_halves(path, [folder.name for folder in classes])
    return {folder.name: samples_in(folder, deep=True) for folder in classes}


def samples_in(folder: Path, *, deep: bool = False) -> list[Path]:
    """Files of samples in a folder, by name; with ``deep`` those below it too."""
    found = folder.rglob("*") if deep else folder.iterdir()
    return sorted(file for file in found if file.suffix.lower() in SAMPLES and not _hidden(file, folder))


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") or part == _FORKS for part in file.relative_to(folder).parts)


def read_file(file: Path, contract: InputContract) -> Array:
    """One sample from one file, by what its name ends in.

    Raises:
        InputError: it cannot be read.
    """
    suffix = file.suffix.lower()
    if suffix in SOUNDS:
        return read_sound(file, contract)
    return load_array(file) if suffix in _ARRAYS else read_image(file, contract)


def _check_no_halves(path: Path, names: Sequence[str]) -> None:
    """Refuse a folder whose sub-folders are halves or kinds of files of a data set instead of classes.

    Raises:
        InputError: names one of them.
    """
    kinds = [name for name in names if name.lower() in _KINDS]
    if len(kinds) > 1 and len(kinds) == len(names):
        raise InputError("its sub-folders hold samples and what belongs to them, and no classes", file=path,
                         expected="one sub-folder per class", got=", ".join(kinds),
                         next_step=f"name the folder of the samples, such as {path / kinds[0]}, with objects as "
                                   "--ground-truth; save masks as y beside their images as x in an .npz")  # fmt: skip
    words = {word for half in HALVES.values() for word in half}
    halves = [name for name in names if name.lower() in words]
    if halves and len(halves) == len(names):
        raise InputError("its sub-folders are parts of a data set, and no classes", file=path,
                         expected="one sub-folder per class", got=", ".join(halves),
                         next_step=f"name one of them, such as {path / halves[0]}")  # fmt: skip


def _check_one_kind(path: Path, files: Iterable[Path]) -> None:
    kinds = {"sounds" if file.suffix.lower() in SOUNDS else "arrays" if file.suffix.lower() in _ARRAYS else "images"
             for file in files}  # fmt: skip
    if len(kinds) > 1:
        raise InputError("samples of different kinds in one folder", file=path, expected="one kind",
                         got=", ".join(sorted(kinds)), next_step="take out what is no sample")  # fmt: skip


def _unread(path: Path, files: Iterable[Path]) -> tuple[str, ...]:
    """What is said of files that are no samples, or lie outside of the classes."""
    read = set(files)
    left = sorted(file for file in path.rglob("*") if file.is_file() and file not in read
                  and not _hidden(file, path) and file.name.lower() not in _LITTER)  # fmt: skip
    if not left:
        return ()
    shown = ", ".join(str(file.relative_to(path)) for file in left[:_MOST_NAMED])
    kinds = Counter(file.suffix.lower() or "no suffix" for file in left)
    return (
        f"{len(left)} files are not read ({', '.join(kinds)}): {shown}" + (" …" if len(left) > _MOST_NAMED else ""),
    )


def _image_notes(files: Iterable[Path]) -> tuple[str, ...]:
    """What is said of pictures that a viewer shows otherwise than they are read."""
    turned, clear = [], []
    for file in files:
        if file.suffix.lower() in IMAGES:
            orientation, alpha = _facts(file)
            turned += [file] if orientation not in {0, 1} else []
            clear += [file] if alpha else []
    notes = []
    if turned:
        notes.append(f"{len(turned)} images are turned by their EXIF tag ({turned[0].name}): read as they are stored")
    if clear:
        notes.append(f"{len(clear)} images are transparent in part ({clear[0].name}): their colours are read alone")
    return tuple(notes)


def _facts(file: Path) -> tuple[int, bool]:
    from PIL import Image

    with Image.open(file) as image:
        tag: Any = image.getexif().get(_ORIENTATION, 0)
        return int(tag) if isinstance(tag, int) else 0, image.mode in {"RGBA", "LA", "PA"}
