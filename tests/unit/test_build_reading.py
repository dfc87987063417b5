"""Data as people keep it: arrays by other names, tables, sound, pictures of every kind, labels in any form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeship.build import data, label_check
from edgeship.build.metrics import ranking, shares
from edgeship.build.reading.labels import renumber
from edgeship.build.reading.tables import check_names
from edgeship_agent.contract.errors import InputError
from edgeship_agent.contract.manifest import Impute, InputContract, LogMel, OutputContract

VECTOR = (InputContract(tensor="features", dtype="float32", shape=(3,)),)
X = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


def _save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("y", "labels", "names"),
    [
        (np.array([[0], [2], [1], [1]]), (0, 2, 1, 1), ()),
        (np.eye(3, dtype=np.float32)[[0, 2, 1, 1]], (0, 2, 1, 1), ()),
        (np.eye(3, dtype=np.uint8)[[0, 2, 1, 1]], (0, 2, 1, 1), ()),
        (np.array([True, False, True, True]), (1, 0, 1, 1), ()),
        (np.array(["no", "yes", "maybe", "yes"]), (1, 2, 0, 2), ("maybe", "no", "yes")),
        (np.array([b"b", b"a", b"b", b"a"]), (1, 0, 1, 0), ("a", "b")),
    ],
)
def test_labels_in_any_form_are_classes(
    tmp_path: Path, y: np.ndarray, labels: tuple[int, ...], names: tuple[str, ...]
) -> None:
    found = data.load(_save(tmp_path / "d.npz", x=X, y=y), VECTOR)
    assert found.labels == labels
    assert found.class_names == names
    assert found.targets is None


@pytest.mark.parametrize(
    "names",
    [("images", "labels"), ("X_test", "y_test"), ("arr_0", "arr_1"), ("data", "target"), ("windows", "Y")],
)
def test_arrays_go_by_the_names_that_people_use(tmp_path: Path, names: tuple[str, str]) -> None:
    found = data.load(_save(tmp_path / "d.npz", **{names[0]: X, names[1]: np.arange(4)}), VECTOR, "evaluation")
    assert found.labels == (0, 1, 2, 3)
    assert any(names[0] in note for note in found.notes)


def test_a_file_of_both_halves_gives_each_its_own(tmp_path: Path) -> None:
    halves = {"x_train": X, "y_train": np.array([0, 0, 0, 0]), "x_test": X[:2] + 1, "y_test": np.array([1, 1])}
    path = _save(tmp_path / "mnist.npz", **halves)
    calibration, evaluation = (data.load(path, VECTOR, role) for role in ("calibration", "evaluation"))
    assert (len(calibration), calibration.labels) == (4, (0, 0, 0, 0))
    assert (len(evaluation), evaluation.labels) == (2, (1, 1))


def test_what_is_not_read_is_said(tmp_path: Path) -> None:
    found = data.load(_save(tmp_path / "d.npz", features=X, person=np.arange(4)), VECTOR)
    assert found.labels is None
    assert any("not read: person" in note for note in found.notes)


def test_an_array_file_finds_its_labels_beside_it(tmp_path: Path) -> None:
    for name, array in {"x_test": X, "y_test": np.arange(4), "y_train": np.zeros(9, int)}.items():
        np.save(tmp_path / f"{name}.npy", array)
    assert data.load(tmp_path / "x_test.npy", VECTOR).labels == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("shape", "array", "words"),
    [
        ((3,), X.astype(np.float64), 'save x.astype("float32")'),
        ((1, 8, 8), np.zeros((2, 8, 8, 1), np.float32), "save x.transpose(0, 3, 1, 2),"),
        ((8, 8, 1), np.zeros((2, 8, 8), np.float32), "save x.reshape(-1, 8, 8, 1)"),
        ((8, 8, 3), np.zeros((2, 8, 8, 3), np.uint8), "--preprocess"),
    ],
)
def test_a_refusal_says_how_to_save_it(tmp_path: Path, shape: tuple[int, ...], array: np.ndarray, words: str) -> None:
    with pytest.raises(InputError) as refusal:
        data.load(_save(tmp_path / "d.npz", x=array), (InputContract(tensor="x", dtype="float32", shape=shape),))
    assert words in refusal.value.next_step


@pytest.mark.parametrize(
    ("text", "labels", "names"),
    [
        ("a,b,c,label\n1,2,3,1\n4,5,6,0\n", (1, 0), ()),
        ("\ufeffa;b;c;Species\r\n1,5;2;3;cat\r\n4;5;6;ant\r\n", (1, 0), ("ant", "cat")),
        (',a,b,c,"class"\n0,1,2,3,x\n1,"4",5,6,y\n', (0, 1), ("x", "y")),
        ("c\tfeatures_1\tfeatures_0\tfeatures_2\ty\n0\t1\t2\t3\t1\n0\t4\t5\t6\t0\n", (1, 0), ()),
    ],
)
def test_tables_are_read_as_they_come(
    tmp_path: Path, text: str, labels: tuple[int, ...], names: tuple[str, ...]
) -> None:
    (tmp_path / "t.csv").write_bytes(text.encode())
    found = data.load(tmp_path / "t.csv", VECTOR)
    assert found.labels == labels
    assert found.class_names == names
    assert found.samples[1]["features"].tolist() in ([4.0, 5.0, 6.0], [5.0, 4.0, 6.0])
    assert len(found.columns["features"]) == 3


@pytest.mark.parametrize(
    ("text", "samples"),
    [
        ("5.1,3.5,1.4,Iris-setosa\n7.0,3.2,4.7,Iris-versicolor\n4.9,3.0,1.4,Iris-setosa\n\n", 3),  # iris.data of UCI
        ("1,2,?,cat\n4,5,?,cat\n7,8,9,dog\n", 3),
        ("0,1,2,Species\n5.1,3.5,1.4,setosa\n4.9,3.0,1.4,setosa\n", 2),  # pandas, of an array without names
        (",0,1,2,label\n7,5.1,3.5,1.4,setosa\n8,4.9,3.0,1.4,setosa\n", 2),  # its index before them
        ("400.5,401.0,401.5,class\n5.1,3.5,1.4,setosa\n4.9,3.0,1.4,setosa\n", 2),
        ("400.5,401.0,401.5,Dose\n5.1,3.5,1.4,0.5\n4.9,3.0,1.4,0.5\n".replace("Dose", "target"), 2),
        ("a,b,c,Species\n5.1,3.5,1.4,setosa\n4.9,3.0,1.4,setosa\n", 2),
    ],
)
def test_a_first_row_is_a_header_only_where_it_is_no_sample(tmp_path: Path, text: str, samples: int) -> None:
    (tmp_path / "t.csv").write_text(text)
    gaps = InputContract(tensor="features", dtype="float32", shape=(3,), steps=(Impute(values=(0.0,)),))
    found = data.load(tmp_path / "t.csv", (gaps,))
    assert len(found) == samples
    assert found.labels is not None or found.targets is not None
    first = text.splitlines()[0].split(",")
    assert found.columns == ({} if samples == 3 else {"features": tuple(first[-4:-1])})


@pytest.mark.parametrize(
    "text",
    ["5.1,3.5,1.4,Iris-setosa\n7.0,3.2,4.7,Iris-versicolor\n", "5.1,,1.4\n7.0,3.2,4.7\n"],
)
def test_a_first_row_that_may_be_either_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match="a header or a sample") as refusal:
        data.load(tmp_path / "t.csv", VECTOR)
    assert "a row of names" in refusal.value.next_step


def test_classes_may_be_called_as_gaps_are(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b,c,defect\n1,2,3,none\n4,5,6,NA\n7,8,9,crack\n9,9,9,-\n")
    found = data.load(tmp_path / "t.csv", VECTOR)
    assert found.class_names == ("-", "NA", "crack", "none")
    (tmp_path / "t.csv").write_text("a,b,c,label\n1,2,3,none\n4,5,6,\n7,8,9,crack\n")
    with pytest.raises(InputError, match="a sample without a label"):
        data.load(tmp_path / "t.csv", VECTOR)
    (tmp_path / "t.csv").write_text("a,b,c,target\n1,2,3,0.5\n4,5,6,NA\n")
    with pytest.raises(InputError, match="NaN"):
        data.load(tmp_path / "t.csv", VECTOR)


NAMES = ("petal width", "height", "depth")


@pytest.mark.parametrize(
    ("text", "labelled", "note"),
    [
        ("height,depth,petal width,label\n2,3,1,1\n5,6,4,0\n", True, "by the names"),
        ("height,depth,Petal_Width,Species\n2,3,1,cat\n5,6,4,dog\n", True, "Species is read as the label"),
        ("time,height,depth,petal width,label\n0,2,3,1,1\n0,5,6,4,0\n", True, "not read: time"),
        ("id,height,depth,petal width\n0,2,3,1\n1,5,6,4\n", False, "not read: id"),
        ("height,depth,petal width\n2,3,1\n5,6,4\n", False, "by the names"),
        ("features_2,features_0,features_1\n3,1,2\n6,4,5\n", False, ""),  # positions, said by name
        ("0,1,2,label\n1,2,3,1\n4,5,6,0\n", True, "in their order"),  # no names at all
        ("1,2,3\n4,5,6\n", False, ""),
    ],
)
def test_columns_go_where_the_model_knows_their_names(tmp_path: Path, text: str, labelled: bool, note: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    found = data.load(tmp_path / "t.csv", VECTOR, names=NAMES)
    check_names(found.columns, VECTOR, NAMES, found.path)
    assert [sample["features"].tolist() for sample in found.samples] == [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
    assert (found.labels is not None) == labelled
    assert note in "; ".join(found.notes)


def test_columns_by_other_names_than_the_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("height,depth,weight,label\n2,3,1,1\n")
    found = data.load(tmp_path / "t.csv", VECTOR, names=NAMES)
    with pytest.raises(InputError, match="other names") as refusal:
        check_names(found.columns, VECTOR, NAMES, found.path)
    assert (refusal.value.expected, refusal.value.got) == ("petal width", "weight")
    assert "features_0" in refusal.value.next_step
    check_names(found.columns, VECTOR, (), found.path)  # a model that knows no names


def test_a_column_of_answers_that_nothing_names_is_refused_beside_the_models_own(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("height,depth,petal width,price\n2,3,1,0.5\n")
    with pytest.raises(InputError, match="price") as refusal:
        data.load(tmp_path / "t.csv", VECTOR, names=NAMES)
    assert "label" in refusal.value.next_step


def test_a_table_with_gaps_needs_a_step_that_fills_them(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b,c,price\n1,,3,0.5\n4,5,NA,1.5\n".replace("price", "target"))
    with pytest.raises(InputError, match="NaN"):
        data.load(tmp_path / "t.csv", VECTOR)
    filled = InputContract(tensor="features", dtype="float32", shape=(3,), steps=(Impute(values=(0.0,)),))
    found = data.load(tmp_path / "t.csv", (filled,))
    assert found.targets is not None
    assert found.targets.tolist() == [0.5, 1.5]
    assert found.prepared([filled])[0]["features"].tolist() == [[1.0, 0.0, 3.0]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b,c\n1,2,red\n", "c, row 1"),
        ("a,b,label\n1,2,0\n", "not as many columns"),
        ("a,b,c,d\n1,2,3,4\n", "call that of the right answers label"),
        ("a,b,c\n1,2,3\n4,5\n", "a row of another length"),
        ("a,b,c\n", "the data set is empty"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError) as refusal:
        data.load(tmp_path / "t.csv", VECTOR)
    assert words in str(refusal.value) + refusal.value.next_step


def _wav(path: Path, samples: np.ndarray, rate: int = 16000) -> None:
    from scipy.io import wavfile  # type: ignore[import-untyped, unused-ignore]

    path.parent.mkdir(exist_ok=True)
    wavfile.write(path, rate, samples)


@pytest.mark.parametrize(
    "samples",
    [
        np.array([0, 8192, -16384, 32767], np.int16),
        np.array([0, 0.25, -0.5, 32767 / 32768], np.float32),
        (np.array([0, 8192, -16384, 32767], np.int64) << 16).astype(np.int32),
        np.array([[0, 0], [8192, 8192], [-16384, -16384], [32767, 32767]], np.int16),
    ],
)
def test_sound_of_every_kind_gives_the_same_numbers(tmp_path: Path, samples: np.ndarray) -> None:
    _wav(tmp_path / "yes" / "a.wav", samples)
    floats = data.load(tmp_path, (InputContract(tensor="x", dtype="float32", shape=(4,)),))
    assert floats.samples[0]["x"] == pytest.approx([0, 0.25, -0.5, 32767 / 32768])
    integers = data.load(tmp_path, (InputContract(tensor="x", dtype="int16", shape=(4,)),))
    assert integers.samples[0]["x"].tolist() == [0, 8192, -16384, 32767]


def test_sound_of_another_rate_or_length_is_refused(tmp_path: Path) -> None:
    _wav(tmp_path / "yes" / "a.wav", np.zeros(8, np.int16), 8000)
    mel = LogMel(rate_hz=16000, frame_length=4, hop_length=4, bins=2, high_hz=8000.0)
    with pytest.raises(InputError, match="expected 16000 Hz, got 8000 Hz"):
        data.load(tmp_path, (InputContract(tensor="x", dtype="float32", shape=(8,), steps=(mel,)),))
    with pytest.raises(InputError, match=r"a\.wav"):
        data.load(tmp_path, (InputContract(tensor="x", dtype="float32", shape=(16,)),))


GREY = (InputContract(tensor="x", dtype="uint8", shape=(2, 2, 1)),)


def test_a_picture_of_16_bits_is_never_cut_off(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.fromarray(np.array([[0, 300], [4000, 65535]], np.uint16)).save(tmp_path / "a" / "p.png")
    with pytest.raises(InputError, match="16 bits"):
        data.load(tmp_path, GREY)
    found = data.load(tmp_path, (InputContract(tensor="x", dtype="uint16", shape=(2, 2, 1)),))
    assert found.samples[0]["x"].reshape(-1).tolist() == [0, 300, 4000, 65535]


def test_pictures_have_the_channels_that_the_contract_says(tmp_path: Path) -> None:
    (tmp_path / "a" / "deeper").mkdir(parents=True)
    Image.new("RGBA", (2, 2), (9, 9, 9, 7)).save(tmp_path / "a" / "deeper" / "p.png")
    assert data.load(tmp_path, GREY).samples[0]["x"].shape == (2, 2, 1)
    found = data.load(tmp_path, (InputContract(tensor="x", dtype="uint8", shape=(2, 2, 4)),))
    assert found.samples[0]["x"][0, 0].tolist() == [9, 9, 9, 7]
    assert any("transparent" in note for note in found.notes)


def test_what_a_folder_hides_is_said(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    turned = Image.new("L", (2, 2))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "a" / "p.jpg", exif=exif)
    (tmp_path / "a" / "p.heic").write_bytes(b"x")
    notes = " ".join(data.load(tmp_path, GREY).notes)
    assert "1 files are not read (.heic)" in notes
    assert "1 images are turned by their EXIF tag" in notes


def test_what_macos_packs_beside_a_folder_is_no_class(tmp_path: Path) -> None:
    for place in ("cat", "dog", "__MACOSX/cat", "dog/__MACOSX"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("L", (2, 2)).save(tmp_path / place / "p.png")
    found = data.load(tmp_path, GREY)
    assert (found.class_names, found.files, found.notes) == (("cat", "dog"), ("cat/p.png", "dog/p.png"), ())


def test_halves_of_a_data_set_are_no_classes(tmp_path: Path) -> None:
    for half in ("train", "val"):
        (tmp_path / half / "cat").mkdir(parents=True)
        Image.new("L", (2, 2)).save(tmp_path / half / "cat" / "p.png")
    with pytest.raises(InputError, match="no classes"):
        data.load(tmp_path, GREY)


@pytest.mark.parametrize(
    ("labels", "names", "classes", "wanted"),
    [
        ((0, 1, 2), ("bird", "cat", "dog"), ("dog", "Cat ", "bird"), (2, 1, 0)),
        ((0, 1), ("bird", "dog"), ("dog", "cat", "bird"), (2, 0)),
        ((0, 1, 2), ("0", "1", "10"), tuple("abcdefghijk"), (0, 1, 10)),
        ((0, 1), ("n01", "n02"), ("tench", "goldfish"), (0, 1)),
        ((1, 3, 7), (), ("1", "3", "7"), (0, 1, 2)),
        ((1, 0), (), ("a", "b"), (1, 0)),
        ((0, 1), ("A", "a"), ("A", "a"), (0, 1)),
        ((0, 1), ("A", "a"), ("a", "A"), (1, 0)),
        ((0, 1, 2), ("Dog", "a", "dog"), ("A", "a", "dog"), (2, 1, 2)),
        ((0, 1), ("c_d", "c d"), ("c d", "c_d"), (1, 0)),
        ((0, 1), ("NV", "MEL"), ("mel", "nv"), (1, 0)),
    ],
)
def test_labels_follow_the_order_of_the_model(
    labels: tuple[int, ...], names: tuple[str, ...], classes: tuple[str, ...], wanted: tuple[int, ...]
) -> None:
    assert renumber(labels, names, classes, Path("d"))[0] == wanted


def test_a_class_that_the_model_lacks_is_named() -> None:
    with pytest.raises(InputError, match="got fox"):
        renumber((0, 1), ("cat", "fox"), ("cat", "dog"), Path("d"))
    with pytest.raises(InputError, match="got 2"):
        renumber((1, 2), (), ("1", "3"), Path("d"))


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (("Ab", "dog"), ("AB", "ab", "dog")),  # either
        (("A_b", "a_b"), ("a b", "A b")),  # neither is told apart
        (("crane", "dog"), ("crane", "crane", "dog")),
        (("NV", "MEL"), ("nevus", "melanoma")),  # in no alphabetical order, so that nothing tells which is which
    ],
)
def test_a_name_that_does_not_say_which_class_is_refused(names: tuple[str, ...], classes: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="or has twice") as caught:
        renumber((0, 1), names, classes, Path("d"))
    assert "--labels" in caught.value.next_step


def test_whole_numbers_of_floats_are_classes_where_the_model_has_some(tmp_path: Path) -> None:
    found = data.load(_save(tmp_path / "d.npz", x=X, y=np.array([0.0, 2.0, 1.0, 1.0])), VECTOR)
    assert data.as_classes(found, np.zeros((4, 3), np.float32)).labels == (0, 2, 1, 1)
    assert data.as_classes(found, np.zeros((4, 1), np.float32)).targets is not None


def test_class_numbers_are_the_models_names_whether_they_are_saved_as_integers_or_floats(tmp_path: Path) -> None:
    three = np.zeros((4, 3), np.float32)
    for y in (np.array([1, 3, 2, 1]), np.array([1.0, 3.0, 2.0, 1.0])):
        found = data.renumbered(data.load(_save(tmp_path / "d.npz", x=X, y=y), VECTOR), ("1", "2", "3"))
        found = data.as_classes(found, three)
        assert (found.labels, found.class_names) == ((0, 2, 1, 0), ("1", "2", "3"))
    foreign = data.load(_save(tmp_path / "d.npz", x=X, y=np.array([0.0, 2.0, 1.0, 1.0])), VECTOR)
    with pytest.raises(InputError, match="got 0"):
        data.as_classes(data.renumbered(foreign, ("1", "2", "3")), three)
    assert data.as_classes(data.renumbered(foreign, ("a", "b", "c")), three).labels == (0, 2, 1, 1)


def _right(count: int, classes: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, classes, count)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (lambda right: right + 1, "from 1"),
        (lambda right: np.array(sorted(range(12), key=str))[right], "numbers"),
        (lambda right: np.array([3, 9, 0, 7, 11, 1, 10, 4, 2, 5, 8, 6])[right], "another order"),
    ],
)
def test_another_numbering_is_found(changed: object, words: str) -> None:
    right = _right(300, 12)
    said = np.where(np.arange(300) % 10 == 0, 0, right)  # one in ten is wrong
    labels = changed(right)  # type: ignore[operator]
    assert words in label_check.other_numbering(said.tolist(), labels.tolist(), 12 + (words == "from 1"))


@pytest.mark.parametrize("seed", range(20))
def test_a_poor_model_is_not_accused(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for classes in (2, 3, 10):
        said, labels = rng.integers(0, classes, (2, 10 * classes))
        assert not label_check.other_numbering(said.tolist(), labels.tolist(), classes)


@pytest.mark.parametrize(("width", "told"), [(1, True), (2, False)])
def test_a_score_that_is_high_for_what_is_normal_is_told_what_its_labels_are(
    tmp_path: Path, width: int, told: bool
) -> None:
    """As scikit-learn's outlier detectors give; of two classes the order is told by names."""
    anomalous = np.arange(40) % 4 == 0
    found = data.load(_save(tmp_path / "e.npz", x=np.zeros((40, 3), np.float32), y=anomalous.astype(int)), VECTOR)
    scores = {"scores": np.repeat(np.where(anomalous, -0.2, 0.1)[:, None], width, axis=1)}
    task = ranking.Auc(name="auc", positive=tuple(anomalous.tolist()), score=lambda outputs: outputs["scores"][:, -1])
    with pytest.raises(InputError, match="ranks the wrong way") as refusal:
        label_check.check(task, found, scores, OutputContract(kind="raw"))
    assert ("y = 1 for normal and y = 0 for anomalies" in refusal.value.next_step) == told
    assert "--labels A,B,C" in refusal.value.next_step


def test_what_finds_rare_faults_is_not_doubted_for_its_false_alarms(tmp_path: Path) -> None:
    """Three faults in a hundred, all found with six false alarms: right less often than never saying one."""
    faults, said = np.arange(100) < 3, np.arange(100) < 9
    found = data.load(_save(tmp_path / "e.npz", x=np.zeros((100, 3), np.float32), y=faults.astype(int)), VECTOR)
    outputs = {"scores": np.eye(2, dtype=np.float32)[said.astype(int)]}
    labels, output = tuple(faults.astype(int).tolist()), OutputContract(kind="classification", labels=("ok", "fault"))
    recall = shares.Recall(labels=labels, index=1, label="fault")
    assert label_check.check(recall, found, outputs, output) == ""
    doubt = label_check.check(shares.Top(labels=labels), found, outputs, output)
    assert doubt.startswith("the source is right on 94 % of the samples, and the commonest class makes 97 %")
