"""Rules of a target's hardware for a finished file."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgeship.build import target_files
from edgeship.build.backends import Artifact
from edgeship.build.backends.base import bind
from edgeship.build.target_gates import target_gates
from edgeship.targets import Target
from edgeship_agent.runtime import open_engine
from tests.tflite_files import int8_net


def artifact(model: Path) -> Artifact:
    engine = open_engine("litert", model)
    inputs, outputs = engine.signature.inputs, engine.signature.outputs
    engine.close()
    return Artifact(runtime="litert", precision="int8", model=model, inputs=tuple(bind(i.name, i) for i in inputs),
                    outputs=tuple(bind(o.name, o) for o in outputs))  # fmt: skip


def held(target: Target, one: Artifact) -> dict[str, bool | None]:
    return {gate.id: gate.holds for gate in target_gates(target, target.runtimes[0], one)}


def test_full_int8_fits_a_microcontroller(tmp_path: Path) -> None:
    cortex = target_files.load("cortex-m")
    gates = target_gates(cortex, cortex.runtimes[0], artifact(int8_net(tmp_path / "m.tflite")))
    assert {gate.id: gate.holds for gate in gates} == {"operators": True, "arena_bytes": True}
    arena = gates[1]
    assert arena.value is not None
    assert arena.evidence["planned_bytes"] == 32
    assert arena.value >= arena.evidence["planned_bytes"] + arena.evidence["persistent_bytes"]
    assert arena.limit == 262_144


def test_float_ends_and_a_small_memory_do_not(tmp_path: Path) -> None:
    cortex = target_files.load("cortex-m")
    assert held(cortex, artifact(int8_net(tmp_path / "m.tflite", float_ends=True)))["types"] is False
    small = msgspec.structs.replace(cortex, memory_bytes=1_000)
    assert held(small, artifact(int8_net(tmp_path / "n.tflite")))["arena_bytes"] is False


def test_other_targets_say_nothing_where_types_fit(tmp_path: Path) -> None:
    for name in ("raspberry-pi-5", "x86-64-litert", "android-arm64"):
        assert held(target_files.load(name), artifact(int8_net(tmp_path / f"{name}.tflite", float_ends=True))) == {}
