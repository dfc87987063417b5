"""What a file or folder holds, before it is checked against the model."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from edgeship_agent.runtime.engine import Array

#: Words in names of arrays and files that say which half of a data set they are, by role.
HALVES: dict[str, tuple[str, ...]] = {
    "calibration": ("calibration", "calib", "cal", "train", "training"),
    "evaluation": ("evaluation", "eval", "test", "testing", "validation", "valid", "val"),
}
#: Names of the array or column that holds the right answers.
LABEL_NAMES: frozenset[str] = frozenset(
    {"y", "label", "labels", "target", "targets", "class", "classes", "classid", "ytrue", "groundtruth"}
)


class Read(Struct, frozen=True, kw_only=True):
    """What a file or folder holds.

    Attributes:
        samples: one mapping model input → raw sample (no batch axis) per sample.
        labels: class index per sample, or None; an index into ``class_names`` where there are some.
        class_names: where the data names its classes.
        targets: [N, …], where ``y`` holds floats instead of classes.
        files: path of each sample, where the samples are files.
        columns: model input → names of its columns, where the data is a table.
        notes: what was read how, where that is not said by the names alone.
    """

    samples: tuple[Mapping[str, Array], ...]
    labels: tuple[int, ...] | None = None
    class_names: tuple[str, ...] = ()
    targets: Array | None = None
    files: tuple[str, ...] = ()
    columns: dict[str, tuple[str, ...]] = {}
    notes: tuple[str, ...] = ()


def plain(name: str) -> str:
    """A name without capitals and everything that is no letter or digit.

    >>> plain("Y_true"), plain("class id")
    ('ytrue', 'classid')
    """
    return "".join(each for each in name.lower() if each.isalnum())
