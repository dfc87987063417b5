"""Samples that nobody has labelled: source and variants run on all of them, and only their answers are kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from msgspec import Struct

from edgeship.build import data
from edgeship.build.backends.base import Samples
from edgeship.build.data import Dataset
from edgeship.build.metrics import OneScore, answers
from edgeship.build.metrics.paired import finite
from edgeship.build.oracle import Oracle, stacked
from edgeship.build.progress import Progress
from edgeship_agent.contract.errors import InputError
from edgeship_agent.contract.manifest import InputContract
from edgeship_agent.processing import prepare
from edgeship_agent.runtime.engine import Array

#: Fixed, so that the same samples are always labelled in the same order; written into few_labels.json.
SEED: Final = 20_270_117
#: Samples that are held in memory at a time.
_BATCH: Final = 256

#: Classes that a model's first output names, the highest one or the highest k; (−1,) where it is no number.
AnswerSet = tuple[int, ...]


class UnlabelledSamples:
    """Samples in a fixed order, read when they are needed.

    Args:
        path: an .npz file, or a folder with images at any depth.
        contracts: what a sample must be.
        files: the images, relative to ``path``; empty for an .npz file.
        samples: those of an .npz file.
        gaps: whether the model itself takes NaN.
    """

    def __init__(
        self,
        path: Path,
        contracts: Sequence[InputContract],
        files: tuple[str, ...],
        samples: tuple[Mapping[str, Array], ...],
        *,
        gaps: bool = False,
    ) -> None:
        self.path = path
        self.files = files
        self._contracts = contracts
        self._samples = samples
        self._gaps = gaps

    def __len__(self) -> int:
        return len(self.files) or len(self._samples)

    def raw(self, index: int) -> Mapping[str, Array]:
        """One sample as the application would hand it over, checked.

        Raises:
            InputError: it is not what the model takes.
        """
        if self.files:
            contract = self._contracts[0]
            sample: Mapping[str, Array] = {contract.tensor: data.read_file(self.path / self.files[index], contract)}
        else:
            sample = self._samples[index]
        data.check_sample(sample, self._contracts, self.path, index, gaps=self._gaps)
        return sample

    def name(self, index: int) -> str:
        """What a person finds the sample by: its file, or its position."""
        return self.files[index] if self.files else str(index)

    def batches(self, contracts: Sequence[InputContract] = ()) -> Iterator[tuple[list[Mapping[str, Array]], Samples]]:
        """Raw and prepared samples in order, a few hundred at a time; by other contracts where some are given."""
        for start in range(0, len(self), _BATCH):
            raw = [self.raw(index) for index in range(start, min(start + _BATCH, len(self)))]
            yield raw, [prepare(contracts or self._contracts, sample) for sample in raw]


class Model(Protocol):
    """What answers."""

    def run(self, sample: Mapping[str, Array], /) -> Mapping[str, Array]:
        """One inference."""


class Field(Struct, frozen=True, kw_only=True):
    """Unlabelled samples with the source's answers.

    Attributes:
        k: how many of the highest classes are an answer.
        source: of every sample.
        digests: sha256 of each sample's content.
        fed: contracts of the files, where they are others than the source's.
        one_score: how one score is read as two classes, where it is.
    """

    samples: UnlabelledSamples
    k: int
    source: tuple[AnswerSet, ...]
    digests: tuple[str, ...]
    fed: tuple[InputContract, ...] = ()
    one_score: OneScore | None = None

    @property
    def metric(self) -> str:
        """What labels of disagreements judge."""
        return f"top{self.k}"

    def variant(self, bound: Model, label: str, progress: Progress) -> dict[int, AnswerSet]:
        """Where a variant's answer is not the source's: position → its answer.

        Raises:
            EngineError: the runtime failed.
        """
        found: dict[int, AnswerSet] = {}
        done = 0
        for _, prepared in self.samples.batches(self.fed):
            said = _answers([bound.run(sample) for sample in prepared], self.k, label, self.one_score)
            found |= {index: answer for index, answer in enumerate(said, start=done) if answer != self.source[index]}
            done += len(prepared)
            progress.count(label, done, len(self.samples))
        return found


def open_samples(path: Path, contracts: Sequence[InputContract], *, gaps: bool = False) -> UnlabelledSamples:
    """Find the samples; images are read later.

    Args:
        path: an archive, or a folder of images.
        contracts: of the model's inputs.
        gaps: whether the model itself takes NaN.

    Raises:
        InputError: there are none, or a folder is to feed a model with several inputs.
    """
    files: tuple[str, ...] = ()
    samples: tuple[Mapping[str, Array], ...] = ()
    if path.is_dir():
        if len(contracts) != 1:
            raise InputError("a folder of images feeds a model with one input", file=path,
                             expected="an .npz file with one array per input", got=f"{len(contracts)} inputs",
                             next_step="save the samples with numpy.savez, one array per input name")  # fmt: skip
        found = (each for each in path.rglob("*") if each.suffix.lower() in data.IMAGES and each.is_file())
        files = tuple(sorted(str(each.relative_to(path)) for each in found))
    elif path.is_file():
        samples = data.read_archive(path, contracts).samples
    opened = UnlabelledSamples(path, contracts, files, samples, gaps=gaps)
    if not len(opened):
        raise InputError("no unlabelled samples", file=path, expected="an .npz file with x, or a folder with images",
                         next_step="check the path")  # fmt: skip
    return opened


def read_field(
    samples: UnlabelledSamples,
    source: Oracle,
    k: int,
    calibration: Dataset,
    progress: Progress,
    one_score: OneScore | None = None,
) -> Field:
    """Run the source on every unlabelled sample.

    Raises:
        InputError: a sample cannot be used, or the calibration has seen it.
    """
    said: list[AnswerSet] = []
    digests: list[str] = []
    for raw, prepared in samples.batches():
        digests += [data.sample_digest(sample) for sample in raw]
        said += _answers(source.run(prepared, "source", progress), k, "source", one_score)
        progress.count("unlabelled", len(said), len(samples))
    seen = set(calibration.digests)
    shared = sum(digest in seen for digest in digests)
    if shared:
        raise InputError(f"{shared} of {len(digests)} unlabelled samples are also in the calibration data",
                         file=samples.path, expected="no sample in common",
                         next_step="take them out of one of the two")  # fmt: skip
    return Field(samples=samples, k=k, source=tuple(said), digests=tuple(digests), one_score=one_score)


def labelling_order(count: int) -> list[int]:
    """The random order in which samples are labelled: any first part of it is a random sample.

    >>> sorted(labelling_order(5)), labelling_order(5) == labelling_order(5)
    ([0, 1, 2, 3, 4], True)
    """
    return [int(index) for index in np.random.default_rng(SEED).permutation(count)]


def _answers(
    outputs: list[Mapping[str, Array]], k: int, label: str, one_score: OneScore | None = None
) -> list[AnswerSet]:
    first = next(iter(stacked(outputs, label).values()))
    first = one_score.columns(first) if one_score is not None else first
    good = finite(first)
    return [answer if number else (-1,) for answer, number in zip(answers(first, k), good, strict=True)]
