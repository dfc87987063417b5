"""The folder of results: whole or not there, verified, bounded, and told apart by everything that they depend on."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeship.build.cache import Cache, Made
from edgeship.build.cache.basis import code_digest, samples_digest
from edgeship.build.cache.memory import Memory, remembering
from edgeship.build.cache.store import damaged, entries
from edgeship.build.cache.why import why
from edgeship_agent.contract.errors import ConversionError, EngineError


class Pass:
    """Counts how often it is done."""

    def __init__(self, base: Path, content: bytes = b"model") -> None:
        self.base = base
        self.content = content
        self.count = 0

    def __call__(self) -> Made:
        self.count += 1
        file = self.base / "deep" / "model.bin"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(self.content)
        return Made(value={"n": self.count}, files=(file,))


def test_a_result_is_made_once_and_its_files_come_back(tmp_path: Path) -> None:
    make = Pass(tmp_path / "a")
    assert Cache(tmp_path / "cache").remember("pass", {"x": 1}, make.base, make) == {"n": 1}
    later = Cache(tmp_path / "cache")
    assert later.remember("pass", {"x": 1}, tmp_path / "b", make) == {"n": 1}
    assert (tmp_path / "b" / "deep" / "model.bin").read_bytes() == b"model"
    assert (make.count, later.counts) == (1, {"pass": [1, 0]})


@pytest.mark.parametrize("change", [{"key": {"x": 2}}, {"name": "other"}, {"basis": {"code": "b"}}])
def test_everything_that_it_depends_on_tells_it_apart(tmp_path: Path, change: dict[str, Any]) -> None:
    make = Pass(tmp_path / "a")
    usual: dict[str, Any] = {"key": {"x": 1}, "name": "pass", "basis": {"code": "a"}}
    for values in (usual, {**usual, **change}):
        cache = Cache(tmp_path / "cache", values["basis"])
        cache.remember(values["name"], values["key"], make.base, make)
    assert make.count == 2


def test_what_cannot_be_done_is_remembered_with_its_words(tmp_path: Path) -> None:
    count = 0

    def fail() -> Made:
        nonlocal count
        count += 1
        error = ConversionError("no such operator", target="litert")
        error.stage = "conversion"
        raise error

    for _ in range(2):
        with pytest.raises(ConversionError) as caught:
            Cache(tmp_path / "cache").remember("pass", {}, tmp_path, fail)
        assert (caught.value.message, caught.value.target, caught.value.stage) == (
            "no such operator", "litert", "conversion",
        )  # fmt: skip
    assert count == 1


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_the_machine_did_is_not_remembered(tmp_path: Path, error: BaseException) -> None:
    def fail() -> Made:
        raise error

    with pytest.raises(type(error)):
        Cache(tmp_path / "cache").remember("pass", {}, tmp_path, fail)
    assert entries(tmp_path / "cache") == []


def test_a_failure_of_the_moment_is_tried_again(tmp_path: Path) -> None:
    def fail() -> Made:
        error = ConversionError("took longer than 900 s")
        error.passing = True
        raise error

    with pytest.raises(ConversionError):
        Cache(tmp_path / "cache").remember("pass", {}, tmp_path, fail)
    assert Cache(tmp_path / "cache").remember("pass", {}, tmp_path, lambda: Made(value=1)) == 1


@pytest.mark.parametrize("harm", ["flip", "cut", "gone", "entry", "entry key"])
def test_a_damaged_entry_is_told_and_made_again(tmp_path: Path, harm: str) -> None:
    root, make = tmp_path / "cache", Pass(tmp_path / "a")
    Cache(root).remember("pass", {"x": 1}, make.base, make)
    (folder,) = (root / "pass").iterdir()
    file, entry = folder / "files" / "deep" / "model.bin", folder / "entry.json"
    match harm:
        case "flip":
            file.write_bytes(b"modem")
        case "cut":
            file.write_bytes(b"mo")
        case "gone":
            file.unlink()
        case "entry":
            entry.write_bytes(entry.read_bytes()[:-10])
        case _:
            entry.write_bytes(entry.read_bytes().replace(b'"x":1', b'"x":2'))
    assert damaged(root) == [folder]
    told: list[str] = []
    assert Cache(root, on_damage=told.append).remember("pass", {"x": 1}, make.base, make) == {"n": 2}
    assert len(told) == 1
    assert damaged(root) == []
    assert Cache(root).remember("pass", {"x": 1}, tmp_path / "c", make) == {"n": 2}


def test_without_a_folder_nothing_is_kept(tmp_path: Path) -> None:
    make = Pass(tmp_path / "a")
    for _ in range(2):
        Cache(None).remember("pass", {}, make.base, make)
    assert make.count == 2


def test_a_full_disk_costs_the_memory_and_not_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgeship.build.cache.store._copied", full)
    make = Pass(tmp_path / "a")
    assert Cache(tmp_path / "cache").remember("pass", {}, make.base, make) == {"n": 1}
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_longest_unused_goes_first_and_never_what_is_in_use(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    for number in range(4):
        cache = Cache(root)
        make = Pass(tmp_path / str(number), b"x" * 1000)
        cache.remember("pass", {"x": number}, make.base, make)
    for each in entries(root):
        os.utime(each.folder, (each.entry.key["x"], each.entry.key["x"]))
    using = Cache(root)
    using.remember("pass", {"x": 0}, tmp_path / "again", Pass(tmp_path / "0"))
    os.utime(next(each.folder for each in entries(root) if each.entry.key["x"] == 0), (0, 0))
    assert using.trim(2500) > 0
    assert sorted(each.entry.key["x"] for each in entries(root)) == [0, 3]


def _race(root: str, base: str, barrier: Any) -> None:
    make = Pass(Path(base))
    barrier.wait(30)
    for number in range(30):
        Cache(Path(root)).remember("pass", {"x": number}, make.base, make)


def test_two_builds_at_once_do_not_harm_each_other(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    both = [
        context.Process(target=_race, args=(str(tmp_path / "cache"), str(tmp_path / name), barrier)) for name in "ab"
    ]
    for each in both:
        each.start()
    for each in both:
        each.join(60)
    assert [each.exitcode for each in both] == [0, 0]
    assert len(entries(tmp_path / "cache")) == 30
    assert damaged(tmp_path / "cache") == []
    assert [each.name for each in (tmp_path / "cache").iterdir()] == ["pass"]


def test_numbers_that_json_has_not_come_back(tmp_path: Path) -> None:
    values = {"a": float("inf"), "b": float("-inf"), "c": 1.5}
    for _ in range(2):
        memory = Memory(Cache(tmp_path / "cache"), tmp_path / "work")
        assert memory.figures("pass", {}, dict[str, float], lambda: values) == values
    memory = Memory(Cache(tmp_path / "nan"), tmp_path / "work")
    assert np.isnan(memory.figures("pass", {}, dict[str, float], lambda: {"a": float("nan")})["a"])


def test_answers_come_back_bit_for_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    said = [{"y": rng.normal(size=(1, 3)).astype(np.float32), "n": np.array([number])} for number in range(5)]
    for _ in range(2):
        memory = Memory(Cache(tmp_path / "cache"), tmp_path / "work")
        for one, other in zip(memory.answers("pass", {}, lambda: said), said, strict=True):
            assert list(one) == list(other)
            assert all(one[name].dtype == other[name].dtype and (one[name] == other[name]).all() for name in one)


def test_answers_of_several_sizes_are_handed_on_and_not_kept(tmp_path: Path) -> None:
    said = [{"y": np.zeros((1, size))} for size in (2, 3)]
    memory = Memory(Cache(tmp_path / "cache"), tmp_path / "work")
    assert [each["y"].shape for each in memory.answers("pass", {}, lambda: said)] == [(1, 2), (1, 3)]
    assert entries(tmp_path / "cache") == []


def test_an_engine_that_fails_is_remembered_as_a_candidate_that_does_not_run(tmp_path: Path) -> None:
    def run() -> list[Any]:
        raise EngineError("refused")

    for _ in range(2):
        memory = Memory(Cache(tmp_path / "cache"), tmp_path / "work")
        with pytest.raises(ConversionError, match="refused"):
            memory.answers("pass", {}, run)


def test_a_toolchain_is_asked_once_about_a_file_and_always_about_code_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answer(toolchain: str, question: dict[str, Any]) -> dict[str, Any]:
        asked.append(toolchain)
        return {"operators": len(asked)}

    monkeypatch.setattr("edgeship.build.toolchains.workers.ask", answer)
    ask = remembering(Memory(Cache(tmp_path / "cache"), tmp_path / "work"))
    for number, content in enumerate((b"one", b"one", b"other")):
        copy = tmp_path / str(number) / "model.h5"
        copy.parent.mkdir()
        copy.write_bytes(content)
        question = {"command": "describe", "model": str(copy), "format": "keras", "options": {}}
        said = ask("tensorflow", question)
        assert said == {"operators": [1, 1, 2][number]}
    for options in ({"factory": {"module": "mine"}}, {"kind": "pickled-module"}):
        for _ in range(2):
            ask("torch", {**question, "options": options})
    assert asked == ["tensorflow", "tensorflow", *["torch"] * 4]


def test_samples_are_told_apart_by_name_type_shape_and_order() -> None:
    x = np.arange(6, dtype=np.float32)
    base = [{"x": x}, {"x": x + 1}]
    others = [
        [{"x": x + 1}, {"x": x}], [{"y": x}, {"x": x + 1}], [{"x": x.reshape(2, 3)}, {"x": x + 1}],
        [{"x": x.astype(np.int32)}, {"x": x + 1}], base[:1],
    ]  # fmt: skip
    digests = [samples_digest(each) for each in (base, *others)]
    assert len(set(digests)) == len(digests)
    assert samples_digest([dict(each) for each in base]) == digests[0]


def test_a_changed_line_of_code_is_another_basis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "edgeship_changing"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("edgeship.build.cache.basis._CODE", ("edgeship_changing",))
    before = code_digest()
    assert code_digest() == before
    (package / "a.py").write_text("x = 2\n")
    assert code_digest() != before


def test_why_names_the_field_that_differs_from_the_nearest(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    for basis, key in (
        ({"v": {"numpy": "1"}}, {"x": 1}),
        ({"v": {"numpy": "1"}}, {"x": 2}),
        ({"v": {"numpy": "2"}}, {"x": 2}),
    ):
        Cache(root, basis).remember("pass", key, tmp_path, lambda: Made(value=0))
    answer = why(entries(root), "pass")
    assert answer is not None
    assert [each.sentence for each in answer.differences] == ["v.numpy: 1 → 2"]
    assert why(entries(root), "other") is None
    assert json.loads((answer.newest.folder / "entry.json").read_bytes())["key"]["x"] == 2
