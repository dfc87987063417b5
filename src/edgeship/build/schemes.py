"""Which int8 schemes a runtime on a target may use, and in which order they are tried."""

from __future__ import annotations

from typing import Final

from msgspec import structs

from edgeship.build.backends.base import Scheme
from edgeship.targets import Target

U8S8: Final = Scheme(activation="uint8")
S8S8: Final = Scheme(activation="int8")
#: For files whose matrix products suffer from one scale a channel.
S8S8_MATMUL: Final = Scheme(activation="int8", matmul_per_tensor=True)
#: Never saturates, on any processor.
U8S7: Final = Scheme(activation="uint8", weight_bits=7)
_BY_NAME: Final = {scheme.name: scheme for scheme in (U8S8, S8S8)}


def schemes(target: Target, runtime: str, *, on_target: bool) -> tuple[Scheme, ...]:
    """Schemes in the order in which they are tried, the target's own first.

    x86 without VNNI multiplies pairs of bytes into 16 bits, which saturate; six to seven points of ImageNet accuracy
    are lost (build.md, trap 6). That shows only on such a machine: elsewhere, a target without VNNI gets weights of 8
    bits only where :func:`guarded` says that an emulation must show that nothing saturates, and does. Source: ONNX
    Runtime, quantization guide, "U8S8 and reduce_range".

    Args:
        target: the hardware.
        runtime: one of its runtimes.
        on_target: whether this machine is of the target's ISA class, so that what is verified here holds there.

    >>> from edgeship.targets import RuntimeEntry
    >>> old = Target(id="old", title="x86 without VNNI", arch="x86_64", runtimes=(RuntimeEntry(name="onnxruntime"),),
    ...              memory_bytes=1, storage_bytes=1)
    >>> [scheme.name for scheme in schemes(old, "onnxruntime", on_target=False)]
    ['u8s8', 'u8s7']
    >>> [scheme.name for scheme in schemes(old, "onnxruntime", on_target=True)]
    ['s8s8', 'u8s8', 'u8s7']
    """
    entry = target.runtime(runtime)
    own = _BY_NAME[entry.int8 if entry else S8S8.name]
    if runtime == "litert":
        # its kernels take signed activations only, and sum in 32 bits
        ends = bool(target.dtypes.io) and "float32" not in target.dtypes.io
        return tuple(structs.replace(scheme, integer_ends=ends) for scheme in (S8S8, S8S8_MATMUL))
    if target.arch != "x86_64":
        return (own,) if runtime == "openvino" else (own, *_others(own))
    if "vnni" not in target.isa and not on_target:
        return (U8S8, U8S7)
    if runtime == "openvino":
        return (U8S8, U8S7)  # NNCF decides the type of each activation
    return (own, *_others(own), U8S7)


def guarded(scheme: Scheme, target: Target, *, on_target: bool) -> bool:
    """Whether a scheme may be taken for a target only where an emulation shows that no product saturates.

    Args:
        scheme: any.
        target: the hardware.
        on_target: whether this machine shows by itself what saturates there.
    """
    unseen = target.arch == "x86_64" and "vnni" not in target.isa and not on_target
    return unseen and scheme.activation == "uint8" and scheme.weight_bits == 8


def _others(own: Scheme) -> tuple[Scheme, ...]:
    return tuple(scheme for scheme in _BY_NAME.values() if scheme is not own)
