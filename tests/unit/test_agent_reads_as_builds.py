"""Sound and pictures: what a device reads from a file is what the build reads, and is what scipy and Pillow say."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs
from PIL import Image
from scipy.io import wavfile

from edgeship.build import data
from edgeship_agent.contract.errors import InputError
from edgeship_agent.contract.manifest import InputContract
from edgeship_agent.patterns.pictures import read_image
from edgeship_agent.patterns.rows import read_file
from edgeship_agent.patterns.sound import as_floats, parse, read_sound
from tests.contract.examples import MANIFEST

TONE = np.sin(np.arange(400) * 0.3) * 0.7
FLOATS = InputContract(tensor="x", dtype="float32", shape=(-1,))


def stored(kind: str, channels: int) -> np.ndarray:
    both = np.stack([TONE, TONE * 0.5], axis=1)[:, :channels]
    if kind == "uint8":
        return np.round(both * 127 + 128).astype(np.uint8)
    return both.astype(kind) if kind.startswith("float") else np.round(both * (np.iinfo(kind).max - 1)).astype(kind)


def chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def in_24_bits(values: np.ndarray, *, extensible: bool) -> bytes:
    """A file as recorders write it: 24 bits, with a list of remarks in front of the samples."""
    raw = np.round(values * (2**23 - 1)).astype("<i4").reshape(-1, 1).view(np.uint8)[:, :3].tobytes()
    form = struct.pack("<HHIIHH", 0xFFFE if extensible else 1, 1, 48000, 144000, 3, 24)
    if extensible:
        form += struct.pack("<HHIH14s", 22, 24, 4, 1, bytes.fromhex("000000001000800000aa00389b71"))
    body = b"WAVE" + chunk(b"LIST", b"INFOx") + chunk(b"fmt ", form) + chunk(b"data", raw)
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("kind", ["uint8", "int16", "int32", "float32", "float64"])
def test_sound_is_what_scipy_reads(tmp_path: Path, kind: str, channels: int) -> None:
    file = tmp_path / "a.wav"
    wavfile.write(file, 8000, stored(kind, channels))
    rate, theirs = wavfile.read(file)
    mine_rate, mine = parse(file.read_bytes())
    assert mine_rate == rate and mine.dtype == theirs.dtype
    np.testing.assert_array_equal(mine, theirs.reshape(len(theirs), -1))
    heard = read_sound(file, FLOATS)
    np.testing.assert_allclose(heard, TONE * (0.75 if channels == 2 else 1), atol=0.02)


@pytest.mark.parametrize("extensible", [False, True])
def test_24_bits_are_the_upper_ones_of_32(extensible: bool) -> None:
    data_ = in_24_bits(TONE, extensible=extensible)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, theirs = wavfile.read(io.BytesIO(data_))
    np.testing.assert_array_equal(parse(data_)[1][:, 0], theirs)
    np.testing.assert_allclose(as_floats(parse(data_)[1]), TONE, atol=1e-6)


def test_a_device_hears_and_sees_what_the_build_does(tmp_path: Path) -> None:
    folder = tmp_path / "heard"
    folder.mkdir()
    wavfile.write(folder / "a.wav", 8000, stored("int32", 2))
    (folder / "b.wav").write_bytes(in_24_bits(TONE, extensible=True))
    wavfile.write(folder / "c.wav", 8000, stored("float32", 1))
    built = data.load(folder, (FLOATS,)).samples
    manifest = structs.replace(MANIFEST, input_contracts=(FLOATS,))
    for name, sample in zip("abc", built, strict=True):
        np.testing.assert_array_equal(read_file(folder / f"{name}.wav", manifest)["x"], sample["x"])
    Image.fromarray(np.arange(0, 60000, 1000, dtype=np.uint16).reshape(6, 10)).save(tmp_path / "deep.png")
    grey = InputContract(tensor="x", dtype="uint16", shape=(6, 10))
    assert read_image(tmp_path / "deep.png", grey).max() == 59000  # never cut off at 255
    with pytest.raises(InputError, match="16 bits"):
        read_image(tmp_path / "deep.png", InputContract(tensor="x", dtype="uint8", shape=(6, 10)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda raw: raw[:60], "are there"),
        (lambda raw: b"RIFX" + raw[4:], "begin"),
        (lambda raw: raw.replace(struct.pack("<HH", 1, 1), struct.pack("<HH", 2, 1), 1), "plain samples"),
        (lambda raw: raw[:36], "no samples"),
        (lambda _: b"", "begin"),
    ],
)
def test_what_is_no_plain_sound_is_refused(tmp_path: Path, change, says: str) -> None:
    wavfile.write(tmp_path / "a.wav", 8000, stored("int16", 1))
    file = tmp_path / "b.wav"
    file.write_bytes(change((tmp_path / "a.wav").read_bytes()))
    with pytest.raises(InputError, match=says):
        read_sound(file, FLOATS)


def test_a_file_from_a_pipe_ends_where_its_samples_do(tmp_path: Path) -> None:
    wavfile.write(tmp_path / "a.wav", 8000, stored("int16", 1))
    raw = bytearray((tmp_path / "a.wav").read_bytes())
    for size in (0, 0xFFFFFFFF):
        raw[40:44] = struct.pack("<I", size)
        assert len(parse(bytes(raw))[1]) == len(TONE)
