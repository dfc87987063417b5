"""Data that is read, and data that is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeship.build import data
from edgeship_agent.contract.errors import InputError
from edgeship_agent.contract.manifest import InputContract

VECTOR = (InputContract(tensor="x", dtype="float32", shape=(3,)),)


def _save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def _numbers(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)


def test_an_archive_is_read_with_its_labels(tmp_path: Path) -> None:
    found = data.load(_save(tmp_path / "d.npz", x=_numbers(4), y=np.array([0, 1, 2, 1])), VECTOR)
    assert len(found) == 4
    assert found.labels == (0, 1, 2, 1)
    assert len(set(found.digests)) == 4


def test_the_digest_tells_content_order_and_labels(tmp_path: Path) -> None:
    x, y = _numbers(4), np.array([0, 1, 2, 1])
    digests = {
        data.load(_save(tmp_path / f"{index}.npz", x=values, y=labels), VECTOR).digest
        for index, (values, labels) in enumerate([(x, y), (x[::-1], y), (x, y[::-1]), (x + 1, y)])
    }
    assert len(digests) == 4
    assert data.load(_save(tmp_path / "again.npz", x=x, y=y), VECTOR).digest in digests


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": _numbers(4)[:, :2]}, "expected float32 [3], got float32 [2]"),
        ({"x": _numbers(4).astype(np.float64)}, "expected float32 [N, 3], got float64 [4, 3]"),
        ({"x": _numbers(0)}, "the data set is empty"),
        ({"x": np.where(np.arange(3) == 1, np.nan, _numbers(4)).astype(np.float32)}, "NaN or infinity"),
        ({"z": _numbers(4)[:, :2]}, "missing array"),
        ({"x": _numbers(4), "y": np.array(["a", "", "b", "a"])}, "a sample without a label"),
        ({"x": _numbers(4), "y": np.array([0, 1])}, "not one class index per sample"),
        ({"x": _numbers(2), "y": np.array([0, -1])}, "a negative class index"),
        ({"x": _numbers(2), "y": np.zeros((3, 3), np.int64)}, "not one class index per sample"),
        ({"x": _numbers(2), "y": np.array([[0.5], [np.nan]])}, "NaN or infinity among the targets"),
        ({"x": _numbers(2), "y": np.array([0.5])}, "not one target per sample"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(tmp_path: Path, arrays: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(InputError) as refusal:
        data.load(_save(tmp_path / "d.npz", **arrays), VECTOR)
    assert words in str(refusal.value)
    assert refusal.value.file is not None
    assert refusal.value.next_step


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    path = _save(tmp_path / "d.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="not a readable"):
        data.load(path, VECTOR)


def test_several_inputs_go_by_name_and_need_the_same_number(tmp_path: Path) -> None:
    both = (*VECTOR, InputContract(tensor="z", dtype="float32", shape=(3,)))
    found = data.load(_save(tmp_path / "d.npz", x=_numbers(4), z=_numbers(4, 1)), both)
    assert set(found.samples[0]) == {"x", "z"}
    with pytest.raises(InputError, match="different numbers of samples"):
        data.load(_save(tmp_path / "e.npz", x=_numbers(4), z=_numbers(3, 1)), both)


def test_a_folder_names_its_classes(tmp_path: Path) -> None:
    for name, value in (("dog", 200), ("cat", 10)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (5, 4), (value, 0, 0)).save(tmp_path / name / "one.png")
    found = data.load(tmp_path, (InputContract(tensor="image", dtype="uint8", shape=(-1, -1, 3)),))
    assert found.class_names == ("cat", "dog")
    assert found.labels == (0, 1)
    assert found.samples[0]["image"].shape == (4, 5, 3)


def test_an_image_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "broken.png").write_bytes(b"\x89PNG not really")
    with pytest.raises(InputError, match=r"broken\.png"):
        data.load(tmp_path, (InputContract(tensor="image", dtype="uint8", shape=(-1, -1, 3)),))


def test_an_overlap_by_content_is_an_error(tmp_path: Path) -> None:
    x = _numbers(6)
    calibration = data.load(_save(tmp_path / "c.npz", x=x[:4]), VECTOR)
    data.check_disjoint(calibration, data.load(_save(tmp_path / "e.npz", x=x[4:]), VECTOR))
    with pytest.raises(InputError, match="1 of 3 evaluation samples"):
        data.check_disjoint(calibration, data.load(_save(tmp_path / "f.npz", x=x[3:]), VECTOR))


@pytest.mark.parametrize("count", [1, 49, 50, 297])
def test_ranges_and_selection_are_disjoint_and_nothing_is_wasted(count: int) -> None:
    ranges, selection = data.split(count)
    assert not set(ranges) & set(selection)
    assert sorted(ranges + selection) == list(range(count))


def test_missing_values_are_taken_where_the_model_takes_them_and_infinity_nowhere(tmp_path: Path) -> None:
    x = _numbers(4)
    x[1, 0] = np.nan
    path = _save(tmp_path / "gaps.npz", x=x)
    assert np.isnan(data.load(path, VECTOR, gaps=True).samples[1]["x"][0])
    with pytest.raises(InputError, match="NaN or infinity"):
        data.load(path, VECTOR)
    x[2, 0] = np.inf
    with pytest.raises(InputError, match="sample 2"):
        data.load(_save(tmp_path / "infinite.npz", x=x), VECTOR, gaps=True)
