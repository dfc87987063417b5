"""What is in every image of a detector's evaluation data: COCO JSON, or YOLO's text files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Final, TypeVar

import msgspec
import numpy as np
from msgspec import Struct

from edgeship.build.metrics.average_precision import Objects
from edgeship_agent.contract.errors import ConfigError, InputError
from edgeship_agent.processing.detection import Decoding, corners

_SEE: Final = "compare with the example in docs/guide/metrics.md"
_NAMES: Final = "give ground truth whose names lie in the same folders as the images"
#: Text files that lie beside labels without being any, as labelling tools and exports name them.
_NO_LABELS: Final = ("classes", "labels", "notes", "readme", "train", "val", "test", "predefined_classes")
#: A share beyond this is a pixel; a centre a little beyond the edge is not.
_LARGEST_SHARE: Final = 2.0
_MOST_NAMED: Final = 8

T = TypeVar("T")


class _CocoImage(Struct, frozen=True, kw_only=True):
    id: int
    width: float
    height: float
    file_name: str = ""


class _CocoAnnotation(Struct, frozen=True, kw_only=True):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    iscrowd: int | bool = 0


class _CocoCategory(Struct, frozen=True, kw_only=True):
    id: int
    name: str = ""


class _CocoFile(Struct, frozen=True, kw_only=True):
    images: tuple[_CocoImage, ...]
    annotations: tuple[_CocoAnnotation, ...]
    categories: tuple[_CocoCategory, ...]


class GroundTruth(Struct, frozen=True, kw_only=True):
    """What is in the images.

    Attributes:
        objects: of each sample, in order.
        notes: how it was read, where the files alone do not say it.
    """

    objects: tuple[Objects, ...]
    notes: tuple[str, ...] = ()


class Asked(Struct, frozen=True, kw_only=True):
    """What the ground truth must fit.

    Attributes:
        decoding: says which class is no object, and the categories of the others.
        count: samples.
        files: paths of the samples, matched by name; without them, the order decides.
        classes: that the model tells apart, the background among them; 0 where its outputs do not say.
        folder: of the samples, to look at the pictures' sizes; None where there are none.
    """

    decoding: Decoding
    count: int
    files: Sequence[str] = ()
    classes: int = 0
    folder: Path | None = None

    @property
    def kinds(self) -> int:
        """Classes that are objects; 0 where the outputs do not say."""
        return self.classes - 1 if self.classes and self.decoding.background is not None else self.classes


def read_objects(path: Path, asked: Asked) -> GroundTruth:
    """What is in every image of the evaluation data.

    Args:
        path: COCO JSON, or a folder of YOLO text files.
        asked: what it must fit.

    Raises:
        ConfigError: categories that cannot be those of the model's classes.
        InputError: unreadable, or other images than the data's.
    """
    found = (_from_yolo if path.is_dir() else _from_coco)(path, asked)
    if not any(len(each.classes) for each in found.objects):
        raise InputError("no object in any image", file=path, expected="objects to be found",
                         next_step=_nothing_found(path))  # fmt: skip
    return found


def _nothing_found(path: Path) -> str:
    if path.is_dir() and next(path.rglob("*.xml"), None) is not None:
        return "Pascal VOC's XML is not read: save it as COCO JSON or as YOLO text files"
    return "check the paths and the names of the images"


def _from_coco(path: Path, asked: Asked) -> GroundTruth:
    try:
        document = msgspec.json.decode(path.read_bytes(), type=_CocoFile)
    except (OSError, msgspec.DecodeError) as error:
        raise InputError(f"not a readable COCO file: {error}", file=path, next_step=_SEE) from error
    if asked.files:
        by_path = {image.file_name: image for image in document.images}
        images = [_matching(name, by_path, path) for name in asked.files]
    else:
        images = list(document.images)
    missing = [name for name, image in zip(asked.files, images, strict=False) if image is None]
    if missing or len(images) != asked.count:
        raise InputError(
            "other images than the evaluation data's",
            file=path,
            key="images",
            expected=f"{asked.count} images",
            got=f"none for {missing[0]}" if missing else len(images),
            next_step="list every evaluation image, in the order of the data where it is an .npz",
        )
    _check_shared(images, asked.files, path)
    classes, notes = _class_of_category(document, asked, path)
    known = [image for image in images if image is not None]
    _check_turned(known, asked, path)
    boxes: dict[int, list[tuple[tuple[float, ...], int, bool]]] = {}
    for each in document.annotations:
        if each.category_id in classes:
            boxes.setdefault(each.image_id, []).append((each.bbox, classes[each.category_id], bool(each.iscrowd)))
    if lost := set(boxes) - {image.id for image in document.images}:
        notes += (f"{sum(len(boxes[each]) for each in lost)} objects are of images that the file does not list",)
    sizes = [Decoding(boxes="", scores="", format="xywh", width=each.width, height=each.height) for each in known]
    return GroundTruth(
        objects=tuple(_objects(boxes.get(each.id, []), size) for each, size in zip(known, sizes, strict=True)),
        notes=notes,
    )


def _matching(name: str, known: Mapping[str, T], path: Path) -> T | None:
    """What is known of a sample: by its path, by the end of one of the two, or by its name where that is one of a kind.

    Raises:
        InputError: several are called so.
    """
    wanted = PurePosixPath(Path(name).as_posix())
    if str(wanted) in known:
        return known[str(wanted)]
    same = {each: PurePosixPath(each.replace("\\", "/")) for each in known}
    called = [each for each, other in same.items() if other.name == wanted.name]
    ending = [each for each in called if _ends_with(wanted.parts, same[each].parts)]
    chosen = ending or called
    if len(chosen) > 1:
        raise InputError("several images of one name", file=path, key=wanted.name, got=", ".join(sorted(chosen)[:3]),
                         expected=f"one, or {wanted}", next_step=_NAMES)  # fmt: skip
    return known[chosen[0]] if chosen else None


def _ends_with(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether the longer path, of at least a folder and a name, ends with the shorter one.

    >>> _ends_with(("a", "1.png"), ("images", "a", "1.png")), _ends_with(("a", "1.png"), ("b", "1.png"))
    (True, False)
    """
    shared = min(len(one), len(other))
    return shared > 1 and tuple(one[-shared:]) == tuple(other[-shared:])


def _check_turned(images: Sequence[_CocoImage], asked: Asked, path: Path) -> None:
    """Refuse boxes of upright pictures over pixels that lie on their side.

    Raises:
        InputError: the file gives width and height of a picture the other way round than it is stored.
    """
    if asked.folder is None or not asked.files:
        return
    from PIL import Image, UnidentifiedImageError

    for name, image in zip(asked.files, images, strict=True):
        try:
            with Image.open(asked.folder / name) as stored:
                size = stored.size
        except (OSError, UnidentifiedImageError):
            return  # no pictures
        if size[0] != size[1] and size == (image.height, image.width):
            raise InputError("boxes of an upright picture that is stored on its side", file=path, key=name,
                             expected=f"{size[0]} × {size[1]}", got=f"{image.width:g} × {image.height:g}",
                             next_step="turn the pictures as their EXIF tag says (mogrify -auto-orient), since they "
                                       "are read as they are stored")  # fmt: skip


def _class_of_category(document: _CocoFile, asked: Asked, path: Path) -> tuple[Mapping[int, int], tuple[str, ...]]:
    """Category → the model's class, and what is worth saying.

    Raises:
        ConfigError: categories that the file does not have, or as many as cannot be the model's classes.
    """
    decoding = asked.decoding
    listed = tuple(sorted({category.id for category in document.categories}))
    used = Counter(each.category_id for each in document.annotations)
    categories = decoding.categories or listed
    if not set(categories) & set(listed):
        raise ConfigError("categories that the ground truth does not have", file=path, key="detection.categories",
                          expected=list(listed), got=list(categories), next_step=_SEE)  # fmt: skip
    if not decoding.categories:
        _check_categories(document, used, asked, path)
    left = sorted(set(used) - set(categories))
    count = sum(used[each] for each in left)
    notes = (f"{count} objects of the categories {_few(left)} are left out",) if left else ()
    return {category: _after_background(index, decoding) for index, category in enumerate(categories)}, notes


def _check_categories(document: _CocoFile, used: Mapping[int, int], asked: Asked, path: Path) -> None:
    listed = {category.id for category in document.categories}
    if foreign := sorted(set(used) - listed):
        raise InputError("objects of categories that the file does not list", file=path, key="category_id",
                         expected=_few(sorted(listed)), got=_few(foreign),
                         next_step="list them under categories")  # fmt: skip
    if not asked.kinds or len(listed) == asked.kinds:
        return
    names = {category.id: category.name for category in document.categories}
    unused = sorted(listed - set(used))
    if len(listed) - len(unused) == asked.kinds:
        hint = f"categories = {sorted(used)}: {_few([names[each] or str(each) for each in unused])} has no object"
    else:
        hint = "categories = [the COCO category of each class of the model, in the order of its output]"
    raise ConfigError("not one category for each class of the model, so that nothing says which is which", file=path,
                      key="categories", expected=f"{asked.kinds} classes", got=f"{len(listed)} categories",
                      next_step=f"write in --postprocess FILE.toml {hint}")  # fmt: skip


def _few(items: Sequence[object]) -> str:
    rest = len(items) - _MOST_NAMED
    return ", ".join(map(str, items[:_MOST_NAMED])) + (f" and {rest} more" if rest > 0 else "")


def _after_background(index: int, decoding: Decoding) -> int:
    """The model's class of the ``index``-th kind of object."""
    return index + 1 if decoding.background is not None and index >= decoding.background else index


def _from_yolo(path: Path, asked: Asked) -> GroundTruth:
    texts = {
        each.relative_to(path).as_posix(): each
        for each in sorted(path.rglob("*.txt"))
        if each.stem.lower().split(".")[0] not in _NO_LABELS
    }
    notes: tuple[str, ...] = ()
    listed: list[Path | None]
    if asked.files:
        listed = [_matching(Path(name).with_suffix(".txt").as_posix(), texts, path) for name in asked.files]
        _check_shared(listed, asked.files, path)
        empty = sum(each is None for each in listed)
        if 0 < empty < len(listed):
            unread = len(texts) - (len(listed) - empty)
            beside = f", and {unread} text files belong to no image" if unread else ""
            notes = (f"{empty} of {len(listed)} images have no text file: read as images without objects{beside}",)
    elif len(texts) == asked.count:
        listed = list(texts.values())
        names = list(texts)
        notes = (f"text files are taken in the order of their names: {', '.join(names[:3])} … {names[-1]}",)
    else:
        raise InputError("not one text file for each image", file=path, expected=asked.count, got=len(texts),
                         next_step="write an empty file for an image without objects")  # fmt: skip
    outlines: list[Path] = []
    objects = tuple(_read_yolo(each, asked, outlines) for each in listed)
    if outlines:
        notes += (f"outlines ({outlines[0].name}) are read as the boxes around them",)
    return GroundTruth(objects=objects, notes=notes)


def _check_shared(found: Sequence[object | None], files: Sequence[str], path: Path) -> None:
    """Refuse what two images would share: they lie in different folders, and the ground truth does not say in which."""
    counts = Counter(each for each in found if each is not None)
    shared = next((each for each, count in counts.items() if count > 1), None)
    if shared is not None and files:
        both = [name for name, each in zip(files, found, strict=True) if each == shared]
        raise InputError("several images of one name", file=path, key=Path(both[0]).name, got=", ".join(both[:3]),
                         expected="objects of each", next_step=_NAMES)  # fmt: skip


def _read_yolo(path: Path | None, asked: Asked, outlines: list[Path]) -> Objects:
    if path is None:  # by the format's convention an image without objects has no file
        return _objects([], asked.decoding)
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), start=1):
        if not line.split():
            continue
        index, numbers = _parsed(line)
        box = _box(numbers)
        if box is None or index < 0:
            raise InputError("not a box", file=path, key=f"line {number}", got=repr(line[:60]),
                             expected="class, centre x, centre y, width, height as shares of the image",
                             next_step="write the file again")  # fmt: skip
        if max(map(abs, box)) > _LARGEST_SHARE:
            raise InputError("a box in pixels", file=path, key=f"line {number}", got=repr(line[:60]),
                             expected="shares of width and height, 0 … 1",
                             next_step="divide x by the width of the image and y by its height")  # fmt: skip
        if len(numbers) != len(box):
            outlines.append(path)
        if asked.kinds and index >= asked.kinds:
            raise InputError("a class that the model does not have", file=path, key=f"line {number}", got=index,
                             expected=f"0 … {asked.kinds - 1}",
                             next_step="check score_columns, and that classes count from 0")  # fmt: skip
        rows.append((box, _after_background(index, asked.decoding), False))
    return _objects(rows, Decoding(boxes="", scores="", format="cxcywh"))


def _parsed(line: str) -> tuple[int, tuple[float, ...]]:
    """Class and numbers of a line; −1 and none where it holds something else.

    >>> _parsed("2.0 0.5 0.5 0.25 0.125"), _parsed("cat 0.5 0.5 0.2 0.1")
    ((2, (0.5, 0.5, 0.25, 0.125)), (-1, ()))
    """
    try:
        first, *numbers = (float(part) for part in line.split())
    except ValueError:
        return -1, ()
    return (int(first), tuple(numbers)) if first == int(first) and np.isfinite(numbers).all() else (-1, ())


def _box(numbers: Sequence[float]) -> tuple[float, float, float, float] | None:
    """Centre and size: as given, or of the box around an outline's corners; None where it is neither.

    >>> _box((0.0, 0.0, 0.5, 0.0, 0.5, 1.0))
    (0.25, 0.5, 0.5, 1.0)
    """
    if len(numbers) == 4:
        return (numbers[0], numbers[1], numbers[2], numbers[3])
    if len(numbers) < 6 or len(numbers) % 2:
        return None
    (left, right), (top, bottom) = ((min(each), max(each)) for each in (numbers[::2], numbers[1::2]))
    return ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)


def _objects(rows: Sequence[tuple[tuple[float, ...], int, bool]], decoding: Decoding) -> Objects:
    boxes = np.asarray([box for box, _, _ in rows], np.float64).reshape(-1, 4)
    return Objects(
        boxes=corners(boxes, decoding) if len(rows) else boxes,
        classes=np.asarray([index for _, index, _ in rows], np.int64),
        crowd=np.asarray([crowd for _, _, crowd in rows], bool),
    )
