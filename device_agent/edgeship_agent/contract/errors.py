"""Every error that Edgeship raises on purpose.

::

    EdgeshipError                  exit code 1: could not be done
    ├── ConfigError                exit code 2: usage or configuration
    ├── InputError                 exit code 2: data or a model that cannot be used
    ├── ContractError              bytes that do not follow the contract (wire, bundle, file on disk)
    ├── TransferError              a transfer failed; ``retryable`` says whether to try again
    ├── VerificationError          wrong digest, signature or golden output
    ├── ConversionError            a converter or quantizer could not do it (``op``, ``target``)
    ├── EngineError                an inference runtime refused a model or an input
    ├── BudgetExceeded             exit code 3: a gate, budget or benchmark goal is missed
    ├── Inconclusive               exit code 4: not enough data to decide
    └── IllegalTransition          a state machine was asked for a step that its table does not have

A foreign exception is wrapped once, where the foreign library is called (``raise ... from error``).
"""

from __future__ import annotations

__all__ = [
    "BudgetExceeded",
    "ConfigError",
    "ContractError",
    "ConversionError",
    "EdgeshipError",
    "EngineError",
    "IllegalTransition",
    "Inconclusive",
    "InputError",
    "TransferError",
    "VerificationError",
]


class EdgeshipError(Exception):
    """Base of the tree: one sentence for a person, and where to look.

    Args:
        message: what went wrong, in one sentence without a full stop.
        file: the file or address it is about.
        key: the key, tensor or field inside it.
        expected: what would have been right.
        got: what was found.
        next_step: a command or an action that mends it.

    >>> str(InputError("wrong shape", file="calib.npz", key="x", expected="[N, 64]", got="[N, 8]"))
    'calib.npz: x: wrong shape (expected [N, 64], got [N, 8])'
    """

    exit_code = 1
    #: Step of a build that it happened in, where that is known: ``conversion``, ``layout``, ``quantization`` …
    stage = ""

    def __init__(
        self,
        message: str,
        *,
        file: object = None,
        key: str | None = None,
        expected: object = None,
        got: object = None,
        next_step: str | None = None,
    ) -> None:
        self.message = message
        self.file = None if file is None else str(file)
        self.key = key
        self.expected = None if expected is None else str(expected)
        self.got = None if got is None else str(got)
        self.next_step = next_step
        super().__init__(self.sentence())

    def sentence(self) -> str:
        """The whole error in one line: place, message, expected and got."""
        place = "".join(f"{part}: " for part in (self.file, self.key) if part)
        facts = [
            f"{word} {value}" for word, value in (("expected", self.expected), ("got", self.got)) if value is not None
        ]
        return place + self.message + (f" ({', '.join(facts)})" if facts else "")


class ConfigError(EdgeshipError):
    """Usage or configuration that cannot be followed."""

    exit_code = 2


class InputError(EdgeshipError):
    """A model file or data set that cannot be used as it is."""

    exit_code = 2


class ContractError(EdgeshipError):
    """Bytes that do not follow the contract."""


class TransferError(EdgeshipError):
    """A download or upload failed.

    Args:
        retryable: whether the same transfer may succeed later.
    """

    def __init__(self, message: str, *, retryable: bool, file: object = None, next_step: str | None = None) -> None:
        self.retryable = retryable
        super().__init__(message, file=file, next_step=next_step)


class VerificationError(EdgeshipError):
    """A digest, signature or golden output is not what it must be."""


class ConversionError(EdgeshipError):
    """A converter or quantizer could not produce an artifact.

    Args:
        op: the operator that could not be converted, where known.
        target: the runtime or hardware target it was for.
    """

    #: Whether it was this machine's doing (time, memory, a signal) and another try may succeed.
    passing = False

    def __init__(
        self,
        message: str,
        *,
        op: str | None = None,
        target: str | None = None,
        file: object = None,
        next_step: str | None = None,
    ) -> None:
        self.op = op
        self.target = target
        super().__init__(message, file=file, key=op, next_step=next_step)


class EngineError(EdgeshipError):
    """An inference runtime refused a model or an input."""


class BudgetExceeded(EdgeshipError):
    """A gate, budget or benchmark goal is missed."""

    exit_code = 3


class Inconclusive(EdgeshipError):
    """There is not enough data to decide, and no data is not a pass."""

    exit_code = 4


class IllegalTransition(EdgeshipError):
    """A state machine was asked for a step that its table does not have."""
