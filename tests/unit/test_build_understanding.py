"""How data is understood: labels in a table, samples scaled in another way, one score, and what is only doubted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs
from PIL import Image

from edgeship.build import data, feeding_check, inputs, metrics, understanding
from edgeship.build.data import Dataset
from edgeship.build.options import BuildOptions
from edgeship_agent.contract.errors import ConfigError, InputError
from edgeship_agent.contract.manifest import InputContract

PIXELS = InputContract(tensor="x", dtype="uint8", shape=(2, 2, 3))
OPTIONS = BuildOptions(source=Path("m.onnx"), targets=("x86-64-server",), calibration=Path("c"), evaluation=Path("e"))


class Listener:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def step(self, label: str, text: str, glyph: str = "done") -> None:
        self.lines.append(f"{label} {glyph}: {text}")

    def count(self, label: str, done: int, total: int) -> None:
        """Nothing is counted here."""


def pictures(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for index, name in enumerate(names):
        Image.fromarray(np.full((2, 2, 3), index, np.uint8)).save(folder / name)
    return folder


@pytest.mark.parametrize(
    "table",
    [
        "file,label\ndog_1.png,dog\ncat_1.png,cat\ncat_2.png,cat\n",
        "id;breed\nimages/cat_1;cat\nimages/cat_2;cat\nimages/dog_1;dog\nimages/of_another_set;dog\n",
        "sex\tlabel\tname\nm\tdog\tdog_1.png\nf\tcat\tcat_1.png\nf\tcat\tcat_2.png\n",
    ],
)
def test_labels_of_a_folder_may_stand_in_a_table_in_it(tmp_path: Path, table: str) -> None:
    folder = pictures(tmp_path / "e", "cat_1.png", "cat_2.png", "dog_1.png")
    (folder / "labels.csv").write_text(table, encoding="utf-8")
    found = data.load(folder, (PIXELS,), "evaluation")
    assert (found.labels, found.class_names) == ((0, 0, 1), ("cat", "dog"))
    assert [sample["x"].max() for sample in found.samples] == [0, 1, 2]
    assert found.notes[0].startswith("labels are read from labels.csv")


def test_numbers_in_the_table_are_targets(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "e", "1.png", "2.png")
    (folder / "ages.csv").write_text("file;age\n2.png;0,5\n1.png;31,25\n", encoding="utf-8")
    targets = data.load(folder, (PIXELS,)).targets
    assert targets is not None and targets.tolist() == [31.25, 0.5]


def test_columns_of_zeros_and_a_one_are_classes_in_their_order(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "e", "1.png", "2.png")
    (folder / "truth.csv").write_text("image,NV,MEL,BCC\n1,0.0,1.0,0.0\n2,1.0,0.0,0.0\n", encoding="utf-8")
    found = data.load(folder, (PIXELS,), "evaluation")
    assert (found.labels, found.class_names) == ((1, 0), ("NV", "MEL", "BCC"))
    assert "its columns NV, MEL, BCC are the classes" in found.notes[0]
    told = data.renumbered(found, ("BCC", "mel", "NV"))
    assert (told.labels, told.class_names) == ((1, 2), ("BCC", "mel", "NV"))
    with pytest.raises(InputError, match="classes that the model does not have"):
        data.renumbered(found, ("nevus", "melanoma", "carcinoma"))


def test_columns_of_zeros_and_a_one_without_a_header_are_classes_by_their_numbers(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "e", "1.png", "2.png")
    (folder / "truth.csv").write_text("1,0,1,0\n2,1,0,0\n", encoding="utf-8")
    found = data.load(folder, (PIXELS,), "evaluation")
    assert (found.labels, found.class_names) == ((1, 0), ())
    assert "are classes 0 … 2" in found.notes[0]


@pytest.mark.parametrize("header", ["image,NV,NV", "image,NV,"])
def test_columns_of_classes_that_no_name_tells_apart_are_refused(tmp_path: Path, header: str) -> None:
    folder = pictures(tmp_path / "e", "1.png", "2.png")
    (folder / "truth.csv").write_text(f"{header}\n1,0,1\n2,1,0\n", encoding="utf-8")
    with pytest.raises(InputError, match="a name of its own"):
        data.load(folder, (PIXELS,), "evaluation")


def test_calibration_needs_no_labels(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "c", "1.png", "2.png")
    (folder / "labels.csv").write_text("file,label\n1.png,a\n", encoding="utf-8")
    assert data.load(folder, (PIXELS,), "calibration").labels is None


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("file,label\n1.png,a\n", "without a line"),
        ("file,label\n1.png,a\n2.png,b\n1.png,b\n", "listed twice"),
        ("file,colour,size\n1.png,a,3\n2.png,b,4\n", "which column"),
    ],
)
def test_a_table_that_does_not_say_it_is_refused(tmp_path: Path, table: str, says: str) -> None:
    folder = pictures(tmp_path / "e", "1.png", "2.png")
    (folder / "labels.csv").write_text(table, encoding="utf-8")
    with pytest.raises(InputError, match=says):
        data.load(folder, (PIXELS,))


def test_files_without_labels_are_told_how_to_get_some(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "e", "cat_1.png", "cat_2.png", "dog_1.png", "dog_2.png")
    (folder / "notes.csv").write_text("weather\nfair\n", encoding="utf-8")  # names none of them
    found = data.load(folder, (PIXELS,))
    heard = Listener()
    understanding.tell(OPTIONS, heard, found, found)
    assert "2 classes (cat, dog)" in heard.lines[-1] and "labels.csv" in heard.lines[-1]
    heard.lines.clear()
    understanding.tell(structs.replace(OPTIONS, ground_truth=Path("truth.json")), heard, found, found)
    assert not any("labels.csv" in line for line in heard.lines)


def test_folders_of_images_and_masks_are_no_classes(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        pictures(tmp_path / name, "1.png")
    with pytest.raises(InputError, match="belongs to them"):
        data.load(tmp_path, (PIXELS,))


def test_tables_in_two_orders_are_refused(tmp_path: Path) -> None:
    contract = (InputContract(tensor="x", dtype="float32", shape=(2,)),)
    sets = []
    for name, text in (("c", "a,b\n1,2\n"), ("e", "b,a,label\n2,1,0\n"), ("f", "a,b,label\n1,2,0\n")):
        (tmp_path / f"{name}.csv").write_text(text, encoding="utf-8")
        sets.append(data.load(tmp_path / f"{name}.csv", contract))
    understanding.check_columns(sets[0], sets[2])
    with pytest.raises(InputError, match="another order"):
        understanding.check_columns(sets[0], sets[1])


def dataset(**given: object) -> Dataset:
    whole = {"path": Path("e.npz"), "samples": (), "labels": None, "class_names": (), "targets": None, "files": (),
             "digests": (), "digest": "", "columns": {}, "notes": (), **given}  # fmt: skip
    return Dataset(**whole)  # type: ignore[arg-type]


def test_two_classes_of_one_name_are_refused() -> None:
    understanding.check_labels(("a", "A", "c"))
    options = structs.replace(OPTIONS, labels=("a", "c", "a"))
    with pytest.raises(ConfigError, match="the same name for several classes") as refusal:
        inputs.read(options, Path(), Listener())
    assert (refusal.value.exit_code, refusal.value.got) == (2, "a")


def test_another_number_of_classes_is_told_with_their_names_and_what_is_empty(tmp_path: Path) -> None:
    for half in ("c", "e"):
        for name in ("cat", "dog"):
            (tmp_path / half).mkdir(exist_ok=True)
            pictures(tmp_path / half / name, "1.png")
    (tmp_path / "e" / "tmp").mkdir()
    folders = (tmp_path / "c", tmp_path / "e")
    more = understanding.wrong_number_of_classes(("cat", "dog", "tmp"), 2, folders)
    assert (more.expected, more.got, more.exit_code) == ("2", "3 (cat, dog, tmp; no sample in tmp)", 2)
    assert more.next_step == f"remove what is no class: {tmp_path / 'e' / 'tmp'}"
    fewer = understanding.wrong_number_of_classes(("cat", "dog"), 3, folders)
    assert fewer.got == "2 (cat, dog)"
    assert "--labels" in fewer.next_step
    many = understanding.wrong_number_of_classes([f"n{index}" for index in range(13)], 3, ())
    assert many.got is not None and many.got.endswith("n11, …)")


SCORE = np.linspace(0, 1, 4)[:, None].astype(np.float32)
FED = [{"x": np.zeros((1, 2, 2, 3), np.uint8)}] * 4


def test_one_score_beside_zeros_and_ones_is_judged_by_auc() -> None:
    for given in ({"labels": (0, 1, 1, 0)}, {"targets": np.array([0.0, 1.0, 1.0, 0.0])}):
        options, found = understanding.judged(OPTIONS, dataset(**given), FED, SCORE, Listener())
        assert (options.metric, found.labels) == ("auc", (0, 1, 1, 0))
    between = dataset(targets=np.array([0.0, 0.5, 1.0, 0.0]))
    options, found = understanding.judged(OPTIONS, between, FED, SCORE, Listener())
    assert (options.metric, found.labels) == ("auto", None)


def test_an_input_given_back_beside_zeros_and_ones_is_judged_by_auc() -> None:
    """Its highest entry names no class: by top1 an autoencoder was right by chance, before and after."""
    labels = tuple([0, 1] * 20)
    heard = Listener()
    for shape in ((4, 4, 1), (6,)):
        x = np.random.default_rng(2).random((40, *shape)).astype(np.float32)
        fed = [{"x": each[None]} for each in x]
        options, _ = understanding.judged(OPTIONS, dataset(labels=labels), fed, x + 0.01, heard)
        assert options.metric == "auc"
    assert heard.lines[0].startswith("metric note: an output of the input's shape")


def test_as_many_scores_as_features_are_still_scores_of_classes() -> None:
    labels = tuple([0, 1] * 20)
    fed = [{"x": np.zeros((1, 3), np.float32)}] * 40
    scores = np.eye(3, dtype=np.float32)[list(labels)]
    assert understanding.judged(OPTIONS, dataset(labels=labels), fed, scores, Listener())[0].metric == "auto"
    three = structs.replace(OPTIONS, metric="top1")
    assert understanding.judged(three, dataset(labels=labels), fed, scores[:, ::-1], Listener())[0].metric == "top1"


def test_a_source_that_is_right_on_next_to_nothing_proves_nothing() -> None:
    """Its share cannot fall by the margin, so any variant whatever would have passed."""
    scores = {"y": np.eye(10, dtype=np.float32)[[3] * 100]}
    for right, is_refused in ((1, True), (2, False)):
        labels = (3,) * right + (4,) * (100 - right)
        judge, evaluation = metrics.Top(labels=labels), dataset(labels=labels, samples=FED * 25)
        if is_refused:
            with pytest.raises(InputError, match=r"right on next to nothing.*would not show") as refusal:
                understanding.check_found(judge, evaluation, scores)
            assert (refusal.value.key, refusal.value.got) == ("top1", "0.0100")
        else:
            assert understanding.check_found(judge, evaluation, scores) is None
    assert understanding.check_found(metrics.Agreement(), evaluation, scores) is None
    few = dataset(labels=(4,) * 10, samples=FED[:2] * 5)
    assert understanding.check_found(metrics.Top(labels=(4,) * 10), few, {"y": scores["y"][:10]}) is None


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (np.array([[0.2, 0.8], [1.0, 0.0]]), "2 shares of one a sample: judged by rmse"),
        (np.array([[0.2, 0.9], [1.0, 0.0]]), "y holds 2 numbers a sample, and no classes: judged by rmse"),
        (np.array([[-0.2, 1.2], [1.0, 0.0]]), "y holds 2 numbers a sample, and no classes: judged by rmse"),
        (np.array([[1.0, 1.0], [1.0, 0.0]]), "zeros and ones, several a sample: judged by rmse"),
    ],
)
def test_several_numbers_a_sample_are_judged_by_rmse_and_it_is_said(targets: np.ndarray, says: str) -> None:
    heard = Listener()
    assert understanding.judged(OPTIONS, dataset(targets=targets), FED, targets, heard)[0].metric == "auto"
    (line,) = heard.lines
    assert line.startswith("metric note: ") and says in line
    assert ("argmax" in line) == ("shares" in says)


def test_one_number_a_sample_and_a_metric_that_was_named_need_no_word() -> None:
    heard = Listener()
    numbers = np.array([[0.2, 0.9], [1.0, 0.0]])
    understanding.judged(OPTIONS, dataset(targets=numbers[:, :1]), FED, numbers, heard)
    for named in ({"metric": "rmse"}, {"metric": "mine:dice"}, {"task": "raw"}):
        understanding.judged(structs.replace(OPTIONS, **named), dataset(targets=numbers), FED, numbers, heard)
    assert heard.lines == []


def test_whole_numbers_are_targets_of_errors() -> None:
    options = structs.replace(OPTIONS, metric="mae")
    _, found = understanding.judged(options, dataset(labels=(3, 1, 0, 2)), FED, SCORE, Listener())
    assert found.labels is None and found.targets is not None and found.targets.tolist() == [3.0, 1.0, 0.0, 2.0]


def test_several_whole_numbers_a_sample_need_a_metric_of_ones_own() -> None:
    masks = np.zeros((4, 3, 3), np.uint8)
    with pytest.raises(InputError, match="several whole numbers"):
        understanding.judged(OPTIONS, dataset(targets=masks), FED, SCORE, Listener())
    mine = structs.replace(OPTIONS, metric="mine:dice")
    assert understanding.judged(mine, dataset(targets=masks), FED, SCORE, Listener())[1].targets is masks


TRAINED = (
    np.random.default_rng(3).random((3, 3, 4, 4)).astype(np.float32) * np.array([0.4, 0.7, 1.0])[:, None, None, None]
)


def nearest(samples: Sequence[object]) -> list[dict[str, np.ndarray]]:
    """A model of pictures of 0 … 1, channels first: which of three it is nearest to."""
    return [{"y": -((TRAINED[None] - each["x"]) ** 2).sum(axis=(2, 3, 4))} for each in samples]  # type: ignore[index]


def scene(count: int = 90) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 3, count)
    noise = rng.normal(0, 0.2, (count, 3, 4, 4))
    return np.clip(TRAINED[labels] + noise, 0, 1).astype(np.float32), labels


@pytest.mark.parametrize(
    ("change", "says", "step"),
    [
        (lambda x: x * 255, "divided by 255", "factor = 0.0039"),
        (lambda x: x * 2 - 1, "brought to 0 … 1", "offset"),
    ],
)
def test_pictures_in_another_scale_are_refused_with_the_steps_that_mend_it(change, says: str, step: str) -> None:
    x, labels = scene()
    fed = [{"x": change(each[None]).astype(np.float32)} for each in x]
    first = np.concatenate([each["y"] for each in nearest(fed)])
    with pytest.raises(InputError, match=says) as refusal:
        feeding_check.check(dataset(labels=tuple(labels)), fed, {"y": first}, nearest)
    assert step in (refusal.value.next_step or "")


def test_pictures_in_the_right_scale_ask_the_source_nothing_more() -> None:
    x, labels = scene()
    fed = [{"x": each[None]} for each in x]
    first = np.concatenate([each["y"] for each in nearest(fed)])
    feeding_check.check(dataset(labels=tuple(labels)), fed, {"y": first}, lambda _: pytest.fail("asked again"))


def test_a_model_that_is_bad_in_every_scale_is_left_alone() -> None:
    x, labels = scene()
    fed = [{"x": each[None]} for each in x]
    wrong = tuple(np.random.default_rng(5).permutation(labels))
    first = np.concatenate([each["y"] for each in nearest(fed)])
    feeding_check.check(dataset(labels=wrong), fed, {"y": first}, nearest)


def test_without_labels_columns_of_classes_stand_in_the_order_of_the_output(tmp_path: Path) -> None:
    """One order for calibration with columns, with folders, and with none: that of the evaluation's columns."""
    table = "image,NV,MEL,BCC\n1,0,1,0\n2,1,0,0\n"
    found = [pictures(tmp_path / name, "1.png", "2.png") for name in ("e", "c")]
    for folder in found:
        (folder / "truth.csv").write_text(table, encoding="utf-8")
    evaluation, calibration = (data.load(folder, (PIXELS,)) for folder in found)
    folders = structs.replace(calibration, class_names=("BCC", "MEL", "NV"), labels=(1, 2))
    for other in (calibration, folders, structs.replace(calibration, class_names=("MEL",), labels=(0, 0))):
        assert inputs.classes_of_sets(evaluation, other) == ("NV", "MEL", "BCC")
    fewer = structs.replace(evaluation, class_names=("cat", "dog"))
    assert inputs.classes_of_sets(fewer, structs.replace(fewer, class_names=("bird", "dog"))) == ("bird", "cat", "dog")
    assert inputs.classes_of_sets(fewer, structs.replace(fewer, class_names=())) == ()
