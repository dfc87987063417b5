"""Ground truth of detectors as people keep it: right by an own computation, or refused with what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeship.build.metrics.files import read_decoding
from edgeship.build.metrics.groups import decoded_groups
from edgeship.build.metrics.objects import Asked, read_objects
from edgeship_agent.contract.errors import ConfigError, InputError
from edgeship_agent.processing.detection import Decoding, detect

HEAD = Decoding(boxes="y", scores="y", score_columns=(4, 6))


def asked(*files: str, count: int = 0, classes: int = 2, folder: Path | None = None) -> Asked:
    return Asked(decoding=HEAD, files=files, count=count or len(files), classes=classes, folder=folder)


def coco(path: Path, **changes: Any) -> Path:
    """Two images of one name in two folders, ids with gaps, categories out of order, a crowd, a box beyond the edge."""
    document = {
        "images": [{"id": 70, "file_name": "b/1.png", "width": 100, "height": 50},
                   {"id": 9, "file_name": "a/1.png", "width": 200, "height": 50},
                   {"id": 11, "file_name": "a/2.png", "width": 10, "height": 10}],
        "categories": [{"id": 44, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [{"image_id": 70, "category_id": 44, "bbox": [90, 10, 20, 10], "iscrowd": 0},
                        {"image_id": 9, "category_id": 3, "bbox": [20, 10, 20, 10], "iscrowd": 1}],
        **changes,
    }  # fmt: skip
    file = path / "truth.json"
    file.write_text(json.dumps(document), encoding="utf-8")
    return file


def test_coco_is_matched_by_folders_ids_and_categories(tmp_path: Path) -> None:
    found = read_objects(coco(tmp_path), asked("a/1.png", "a/2.png", "b/1.png")).objects
    np.testing.assert_allclose(found[0].boxes, [[0.1, 0.2, 0.2, 0.4]])
    np.testing.assert_allclose(found[2].boxes, [[0.9, 0.2, 1.1, 0.4]])
    assert [each.classes.tolist() for each in found] == [[0], [], [1]]
    assert found[0].crowd.tolist() == [True]
    deeper = read_objects(coco(tmp_path), asked("val/a/1.png", "val/a/2.png", "val/b/1.png")).objects
    assert [each.classes.tolist() for each in deeper] == [[0], [], [1]]


@pytest.mark.parametrize(
    ("changes", "files", "says", "step"),
    [
        ({}, ("1.png",), "several images of one name", "same folders"),
        ({"images": [{"id": 1, "file_name": "1.png", "width": 1, "height": 1}]}, ("a/1.png", "b/1.png"), "one name",
         "same folders"),
        ({}, ("c/3.png",), "other images", "every evaluation image"),
        ({"categories": [{"id": 44}]}, ("b/1.png",), "does not list", "under categories"),
        ({"categories": [{"id": 0, "name": "root"}, {"id": 3}, {"id": 44}]}, ("b/1.png",), "which is which",
         r"categories = \[3, 44\]: root has no object"),
        ({"categories": [{"id": 3}, {"id": 44}, {"id": 45}, {"id": 46}]}, ("b/1.png",), "which is which", "no object"),
        ({"categories": [{"id": 44}, {"id": 3}, {"id": 5}],
          "annotations": [{"image_id": 9, "category_id": 3, "bbox": [0, 0, 1, 1]}]}, ("b/1.png",), "which is which",
         "in the order of its output"),
        ({"annotations": []}, ("b/1.png",), "no object", "paths"),
    ],
)  # fmt: skip
def test_coco_that_does_not_say_what_is_what_is_refused(
    tmp_path: Path, changes: dict[str, Any], files: tuple[str, ...], says: str, step: str
) -> None:
    with pytest.raises((InputError, ConfigError), match=says) as refusal:
        read_objects(coco(tmp_path, **changes), asked(*files))
    import re

    assert re.search(step, refusal.value.next_step or "")


def test_categories_that_no_image_shows_may_be_named(tmp_path: Path) -> None:
    """A model of 91 classes numbers them by COCO's ids, of which 80 are in use."""
    decoding = Decoding(boxes="b", scores="s", background=0, categories=tuple(range(1, 91)))
    found = read_objects(coco(tmp_path), Asked(decoding=decoding, files=("b/1.png",), count=1, classes=91))
    assert found.objects[0].classes.tolist() == [44]


def test_boxes_of_upright_pictures_over_pixels_on_their_side_are_refused(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    Image.new("RGB", (50, 100)).save(tmp_path / "b" / "1.png")
    with pytest.raises(InputError, match="stored on its side"):
        read_objects(coco(tmp_path), asked("b/1.png", folder=tmp_path))
    Image.new("RGB", (50, 25)).save(tmp_path / "b" / "1.png")  # another size alone changes no shares
    read_objects(coco(tmp_path), asked("b/1.png", folder=tmp_path))


def yolo(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        file = folder / "labels" / f"{name.replace('__', '/')}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return folder / "labels"


def test_yolo_is_matched_by_folders_and_outlines_are_their_boxes(tmp_path: Path) -> None:
    labels = yolo(tmp_path, a__1="1 0.5 0.5 0.2 0.4\n", b__1="0.0 0.1 0.1 0.3 0.1 0.3 0.5\n", classes="cat\ndog\n")
    found = read_objects(labels, asked("a/1.jpg", "b/1.jpg", "b/2.jpg"))
    np.testing.assert_allclose(found.objects[0].boxes, [[0.4, 0.3, 0.6, 0.7]])
    np.testing.assert_allclose(found.objects[1].boxes, [[0.1, 0.1, 0.3, 0.5]])
    assert [each.classes.tolist() for each in found.objects] == [[1], [0], []]
    assert "1 of 3 images have no text file" in found.notes[0] and "outlines" in found.notes[1]
    assert read_objects(labels, asked("x/a/1.jpg")).objects[0].classes.tolist() == [1]
    assert read_objects(tmp_path, asked("a/1.jpg")).objects[0].classes.tolist() == [1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0 320 240 64 48\n", "in pixels"),
        ("2 0.5 0.5 0.1 0.1\n", "does not have"),
        ("0 0.5 0.5 0.1 0.1 0.93\n", "not a box"),
        ("cat 0.5 0.5 0.1 0.1\n", "not a box"),
        ("0 0.5 0.5 nan 0.1\n", "not a box"),
    ],
)
def test_lines_that_are_no_boxes_of_the_model_are_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_objects(yolo(tmp_path, **{"1": text}), asked("1.jpg"))


def test_one_text_file_is_not_the_labels_of_two_images(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="several images of one name"):
        read_objects(yolo(tmp_path, **{"1": "0 0.5 0.5 0.1 0.1\n"}), asked("a/1.jpg", "b/1.jpg"))


def test_other_formats_are_named(tmp_path: Path) -> None:
    (tmp_path / "1.xml").write_text("<annotation/>", encoding="utf-8")
    with pytest.raises(InputError) as refusal:
        read_objects(tmp_path, asked("1.jpg"))
    assert "Pascal VOC" in (refusal.value.next_step or "")


BOXES = np.array([[[10.0, 20.0, 30.0, 60.0], [11.0, 20.0, 31.0, 60.0], [0.0, 0.0, 5.0, 5.0]]])


def test_boxes_that_say_their_class(tmp_path: Path) -> None:
    """As SSD's TFLite files end (four outputs, y before x), and as YOLO's with suppression in the graph (one)."""
    apart = {"boxes": BOXES[..., [1, 0, 3, 2]], "classes": np.array([[3.0, 3.0, 7.0]]),
             "scores": np.array([[0.9, 0.8, 0.01]])}  # fmt: skip
    joined = {"y": np.concatenate([BOXES, apart["scores"][..., None], apart["classes"][..., None]], axis=2)}
    one = tmp_path / "one.toml"
    one.write_text('[detection]\nboxes = "boxes"\nscores = "scores"\nclasses = "classes"\nformat = "yxyx"\n'
                   "width = 100\nheight = 100\niou_threshold = 1\n", encoding="utf-8")  # fmt: skip
    two = tmp_path / "two.toml"
    two.write_text('[detection]\nboxes = "y"\nscores = "y"\nscore_columns = [4, 5]\nclass_column = 5\n'
                   "width = 100\nheight = 100\niou_threshold = 1\n", encoding="utf-8")  # fmt: skip
    for path, outputs in ((one, apart), (two, joined)):
        decoding = read_decoding(path, outputs)
        assert Decoding.from_steps(decoding.steps) == decoding
        (found,) = detect(outputs, decoding)
        np.testing.assert_allclose(found.boxes, BOXES[0, :2] / 100)
        assert (found.scores.tolist(), found.classes.tolist()) == ([0.9, 0.8], [3, 3])
    assert decoded_groups(read_decoding(one, apart), "scores", (1, 3)) == ()
    assert [each.name for each in decoded_groups(read_decoding(two, joined), "y", (1, 3, 6))] == [
        "boxes", "scores", "classes"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ('scores = "scores"\n', "no list of boxes"),
        ('scores = "scores"\nclasses = "boxes"\n', "not one class a box"),
        ('scores = "boxes"\nclass_column = 1\n', "one score"),
        ('scores = "scores"\nclasses = "none"\n', "unknown value"),
        ('scores = "scores"\nclasses = "classes"\nclass_column = 0\n', "one place"),
    ],
)
def test_classes_that_are_not_there_are_refused(tmp_path: Path, lines: str, says: str) -> None:
    path = tmp_path / "post.toml"
    path.write_text(f'[detection]\nboxes = "boxes"\n{lines}', encoding="utf-8")
    with pytest.raises(ConfigError, match=says):
        read_decoding(path, {"boxes": BOXES, "classes": np.zeros((1, 3)), "scores": np.zeros((1, 3))})
