"""What a target file says. Every field is data; nothing here decides."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct, field

#: Version of the target file format.
TARGET_VERSION: Final = 1

Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=64)]
Version = Annotated[str, Meta(pattern=r"^[0-9]+(\.[0-9]+)*$")]
Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Amount = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]

Architecture = Literal["x86_64", "aarch64", "armv7l", "cortex-m"]
RuntimeName = Literal["litert", "onnxruntime", "openvino"]
#: Instruction-set features, in the words of ``edgeship_agent.runtime.isa``.
IsaFeature = Literal["vnni", "dotprod", "i8mm", "avx2", "avx512f", "amx_int8", "amx_bf16", "asimd", "fp16", "sve"]


class RuntimeEntry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One inference runtime of a target.

    Attributes:
        name: which one.
        version: range that a device may have, such as ``>=1.20,<2``.
        provider: execution provider or delegate, empty for the runtime's own on the CPU; ``TFLM`` for LiteRT's form for
            microcontrollers, which reads the same file.
        threads: threads of one worker.
        int8: int8 form used where nothing was measured on this ISA class: activations then weights
            (``u8s8`` is twice as fast with VNNI and saturates without it; ARM prefers ``s8s8``).
    """

    name: RuntimeName
    version: str = ""
    provider: str = ""
    threads: Positive = 1
    int8: Literal["s8s8", "u8s8"] = "s8s8"

    @property
    def is_micro(self) -> bool:
        """Whether it is LiteRT's form for microcontrollers."""
        return self.provider == "TFLM"


class Dtypes(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Types that the hardware computes with; empty for no restriction.

    Attributes:
        weights: of constants.
        activations: between operators.
        io: of the model's inputs and outputs.
    """

    weights: tuple[str, ...] = ()
    activations: tuple[str, ...] = ()
    io: tuple[str, ...] = ()


class OperatorRule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One operator that a target takes, and for which types and ranks.

    Attributes:
        op: such as ``Conv``, or ``com.example::Conv`` outside ONNX's own domain.
        dtypes: types that are taken; empty for any.
        max_rank: highest rank of an input; 0 for any.
    """

    op: str
    dtypes: tuple[str, ...] = ()
    max_rank: Count = 0


class Operators(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which operators a target takes beyond what its runtime takes.

    Attributes:
        allow: only these, where not empty.
        deny: never these.
        on_unsupported: what happens to an operator that is not taken.
    """

    allow: tuple[OperatorRule, ...] = ()
    deny: tuple[str, ...] = ()
    on_unsupported: Literal["error", "float", "cpu"] = "error"


class Compiler(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An external compiler that runs as an isolated toolchain.

    Attributes:
        toolchain: its name.
        arguments: of its command line.
    """

    toolchain: str
    arguments: tuple[str, ...] = ()


class MetricBudget(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much of the task metric may be lost.

    Attributes:
        max_drop: as a fraction; a positive drop is worse.
        confidence: of the two-sided interval that must lie within it.
    """

    max_drop: Share = 0.01
    confidence: Annotated[float, Meta(ge=0.5, lt=1)] = 0.95


class Budgets(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Budgets that hold where the command line says nothing; 0 for none.

    Attributes:
        latency_p99_ms: of one inference, in ms.
        size_bytes: of everything that the runtime loads.
        peak_ram_bytes: of the worker process.
        metric: how much accuracy may be lost.
    """

    latency_p99_ms: Amount = 0.0
    size_bytes: Count = 0
    peak_ram_bytes: Count = 0
    metric: MetricBudget = field(default_factory=MetricBudget)

    @property
    def max_drop(self) -> float:
        """The metric's margin, as a fraction."""
        return self.metric.max_drop


class Measure(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How latency is measured.

    Attributes:
        runner: on this machine, over SSH, or by an enrolled device.
        warm_up: inferences before the clock starts.
        min_queries: inferences that are timed, at least.
        min_seconds: time that is measured, at least.
        device: id of the enrolled device, for the runner ``device``.
        server: address of its fleet server, for the runner ``device``; empty for what EDGESHIP_SERVER says.
    """

    runner: Literal["local", "ssh", "device"] = "local"
    warm_up: Count = 50
    min_queries: Positive = 1000
    min_seconds: Amount = 1.0
    device: str = ""
    server: str = ""


class Target(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A kind of device.

    Attributes:
        schema_version: version of this file format.
        id: name of the target and of its file.
        title: what it is, for people.
        extends: id of the target that this one starts from.
        notes: what else to know.
        arch: as ``platform.machine()`` says it.
        isa: instruction-set features that every device of this target has.
        os: operating system.
        glibc: oldest C library among its devices, empty where that does not apply.
        python: oldest Python among their systems, such as ``3.11``, empty where there is none or it does not matter.
        runtimes: in order of preference.
        agent: whether the device agent runs there; otherwise the target is for building only.
        verified_on: real hardware that the target was tried on; empty for none yet.
        compile: an external compiler, for hardware that needs one.
        warmup_s: how long the hardware takes after loading until its speed is steady, in seconds.
        format: file format, where it is not the runtime's own: ``c-array`` for C sources with the model inside.
        dtypes: types that it computes with.
        granularity: of weight scales.
        symmetric: whether weights have no zero point.
        accumulator: type of the sums.
        saturation: whether sums of two int8 products saturate in 16 bits (x86 without VNNI, for ``u8s8``).
        ops: operators that it takes.
        io_layout: layout of image inputs.
        static_shapes: whether every size must be known when the model is built.
        memory_bytes: what the model's worker process may use.
        storage_bytes: what models may use on disk.
        defaults: budgets.
        measure: how latency is measured.
    """

    schema_version: Annotated[int, Meta(ge=1, le=TARGET_VERSION)] = TARGET_VERSION
    id: Name
    title: Annotated[str, Meta(min_length=1)]
    extends: str = ""
    notes: str = ""
    arch: Architecture
    isa: tuple[IsaFeature, ...] = ()
    os: str = "linux"
    glibc: Version | Literal[""] = ""
    python: Version | Literal[""] = ""
    runtimes: Annotated[tuple[RuntimeEntry, ...], Meta(min_length=1)] = field(name="runtime")
    agent: bool = True
    verified_on: tuple[str, ...] = ()
    compile: Compiler | None = None
    warmup_s: Amount = 0.0
    format: Literal["", "c-array"] = ""
    dtypes: Dtypes = field(default_factory=Dtypes)
    granularity: Literal["per_channel", "per_tensor"] = "per_channel"
    symmetric: bool = True
    accumulator: Literal["int32", "int16", "float32"] = "int32"
    saturation: bool = False
    ops: Operators = field(default_factory=Operators)
    io_layout: Literal["any", "nchw", "nhwc"] = "any"
    static_shapes: bool = False
    memory_bytes: Positive
    storage_bytes: Positive
    defaults: Budgets = field(default_factory=Budgets)
    measure: Measure = field(default_factory=Measure)

    def runtime(self, name: str) -> RuntimeEntry | None:
        """The entry of that runtime, or None."""
        return next((entry for entry in self.runtimes if entry.name == name), None)
