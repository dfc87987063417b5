"""Which machine this is, in the terms that decide how fast and how exactly int8 runs."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Final

from edgeship_agent.runtime import runtime_in_place

_CPUINFO: Final = Path("/proc/cpuinfo")
_ARCHITECTURES: Final = {"amd64": "x86_64", "x86-64": "x86_64", "arm64": "aarch64"}
#: Flag of /proc/cpuinfo → the name that targets and births use. Source: Linux, arch/x86/include/asm/cpufeatures.h and
#: Documentation/arch/arm64/elf_hwcaps.rst.
_FLAGS: Final = {
    "avx2": "avx2",
    "avx512f": "avx512f",
    "avx512_vnni": "vnni",
    "avx_vnni": "vnni",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
    "asimd": "asimd",
    "asimddp": "dotprod",
    "asimdhp": "fp16",
    "i8mm": "i8mm",
    "sve": "sve",
}
#: ISA features that change the int8 kernels of a runtime, the strongest first.
_CLASS_FEATURES: Final = {"x86_64": ("vnni",), "aarch64": ("i8mm", "dotprod")}


def architecture() -> str:
    """``x86_64`` or ``aarch64``; another machine's own name otherwise."""
    machine = platform.machine().lower()
    return _ARCHITECTURES.get(machine, machine)


def features_in(cpuinfo: str) -> tuple[str, ...]:
    """The features that matter in the text of ``/proc/cpuinfo``, sorted.

    >>> features_in("flags : fpu avx2 avx512_vnni")
    ('avx2', 'vnni')
    >>> features_in("Features : fp asimd asimddp")
    ('asimd', 'dotprod')
    """
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"flags", "Features"}:
            return tuple(sorted({_FLAGS[flag] for flag in value.split() if flag in _FLAGS}))
    return ()


@lru_cache(maxsize=1)
def isa_features() -> tuple[str, ...]:
    """Features of this machine: ``vnni``, ``dotprod``, ``i8mm``, ``avx2``, ...; empty where Linux does not tell."""
    return features_in(_cpuinfo())


def isa_class_of(arch: str, features: Iterable[str]) -> str:
    """The class within which int8 figures and golden outputs can be compared.

    >>> isa_class_of("x86_64", ("avx2", "vnni")), isa_class_of("aarch64", ("asimd",))
    ('x86_64+vnni', 'aarch64')
    """
    present = set(features)
    strongest = next((name for name in _CLASS_FEATURES.get(arch, ()) if name in present), None)
    return f"{arch}+{strongest}" if strongest else arch


def isa_class() -> str:
    """The ISA class of this machine."""
    return isa_class_of(architecture(), isa_features())


@lru_cache(maxsize=1)
def cpu_name() -> str:
    """Name of the processor for people."""
    for line in _cpuinfo().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"model name", "Model", "Hardware"} and value.strip():
            return value.strip()
    return platform.processor() or architecture()


def fingerprint(runtime: str) -> dict[str, str]:
    """What golden outputs depend on here; when it changes, the golden check is made again.

    Raises:
        ConfigError: no such runtime.
    """
    name, version = runtime_in_place(runtime)
    return {
        "runtime": name,
        "runtime_version": version,
        "isa_class": isa_class(),
        "isa": " ".join(isa_features()),
        "cpu": cpu_name(),
    }


def _cpuinfo() -> str:
    try:
        return _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
