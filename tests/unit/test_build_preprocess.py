"""The two TOML files of a build."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeship.build import preprocess
from edgeship_agent.contract.errors import ConfigError
from edgeship_agent.contract.manifest import Cast, InputContract, Reshape, TensorSpec

IMAGE = [TensorSpec(name="image", dtype="float32", shape=(-1, 1, 8, 8))]
RAW = [InputContract(tensor="x", dtype="float32", shape=(2,))]


def _file(folder: Path, text: str) -> Path:
    path = folder / "file.toml"
    path.write_text(text)
    return path


def test_steps_arrive_in_order(tmp_path: Path) -> None:
    text = """
    [[input]]
    dtype = "uint8"
    shape = [8, 8]
    steps = [{ op = "cast", dtype = "float32" }, { op = "reshape", shape = [1, 8, 8] }]
    """
    contracts = preprocess.read_contracts(_file(tmp_path, text), IMAGE)
    wanted = InputContract(tensor="image", dtype="uint8", shape=(8, 8),
                           steps=(Cast(dtype="float32"), Reshape(shape=(1, 8, 8))))  # fmt: skip
    assert contracts == (wanted,)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[input]]\ndtype='uint8'\nshape=[8]\nsteps=[{op='blur'}]", "unknown step"),
        ("[[input]]\ndtype='uint8'\nshape=[8]\nsteps=[{op='scale', factor=1.0, facto=2}]", "facto"),
        ("[[input]]\ndtype='uint8'\nshape=[8]\nsteps=[{op='scale'}]", "factor"),
        ("[[input]]\ndtype='uint8'\nshape=[8]\ntensor='other'", "not an input of the model"),
        ("[[input]]\ndtype='uint8'\nshape=[8]\ncolour=1", "colour"),
        ("schema_version = 9\n[[input]]\ndtype='uint8'\nshape=[8]", "unknown version"),
        ("input = []", "no contract for a model input"),
        ("not toml at all", "cannot be read"),
    ],
)
def test_a_wrong_file_is_refused_in_words(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        preprocess.read_contracts(_file(tmp_path, text), IMAGE)
    assert words in str(refusal.value)
    assert refusal.value.next_step


def test_without_a_file_an_array_is_fed_as_it_is() -> None:
    assert preprocess.fed_as_is(IMAGE) == (InputContract(tensor="image", dtype="float32", shape=(1, 8, 8)),)


def test_features_are_documented_one_by_one_or_all_at_once(tmp_path: Path) -> None:
    one = preprocess.read_features(_file(tmp_path, "[[feature]]\nname='t'\nunit='K'\nlow=1\nhigh=2"), RAW)
    assert one["x"][0].documented
    assert one["x"][0].unit == "K"
    two = preprocess.read_features(_file(tmp_path, "[[feature]]\nname='t'\n[[feature]]\nname='u'"), RAW)
    assert [feature.name for feature in two["x"]] == ["t", "u"]
    with pytest.raises(ConfigError, match="does not fit"):
        preprocess.read_features(_file(tmp_path, "[[feature]]\nname='t'\n" * 3), RAW)
