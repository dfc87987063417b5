"""The search itself: waves of candidates, each judged on a few samples, the closest on all of them, then by speed.

It runs nothing: a bench does, which makes candidates, tries them and records what became of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from msgspec import Struct, structs

from edgeship.build.backends.base import Scheme
from edgeship.build.search import floats, halving, space
from edgeship.build.search.graph import Operator
from edgeship.build.search.halving import Trial
from edgeship.build.search.space import Effort, Part

#: A net this close to the source needs no further wave, and no layer in float.
_CLOSE_ENOUGH: Final = 0.002
#: A layer in float must lower the whole error to this share to be worth its time.
_WORTH_A_LAYER: Final = 0.95
#: What makes a file clearly larger must lower the whole error to this share.
_WORTH_BYTES: Final = 0.8
#: Where nothing comes within the limit, so many layers are tried in float, and they may take this share of the work.
_RESCUE_SUSPECTS: Final = 10
_RESCUE_SHARE: Final = 0.4
#: Tools whose files compute in a manner of their own, which may be many times slower: taken where speed was measured.
_OWN_ARITHMETIC: Final = frozenset({"nncf"})
#: Layers in float together, at most.
MOST_LAYERS: Final = 4


class Bench(Protocol):
    """Makes and tries candidates of one runtime."""

    def attempt(self, scheme: Scheme, samples: int) -> Trial | None:
        """Try one on some of the selection samples; 0 for all of them. None where it cannot be made."""

    def times_ms(self, schemes: Sequence[Scheme]) -> dict[str, float]:
        """Scheme's name → median latency, where this machine is like the target; else empty."""


class Terms(Struct, frozen=True, kw_only=True):
    """What a search must keep to.

    Attributes:
        limit: largest relative RMS that may ship.
        size_bytes: budget, 0 for none.
        most: candidates that are tried on few samples, 0 for no bound.
    """

    effort: Effort
    limit: float
    size_bytes: int = 0
    most: int = 0


class Outcome(Struct, frozen=True, kw_only=True):
    """What a search found.

    Attributes:
        chosen: the scheme that is taken.
        trials: scheme's name → its last trial, in the order of trying.
        layers: operator → share of the net's squared error that goes when it alone is left in float.
        left_out: candidates that the bound left no room for.
    """

    chosen: Scheme
    trials: dict[str, Trial]
    schemes: dict[str, Scheme]
    layers: dict[str, float]
    left_out: int = 0


class Search:
    """One runtime's search for one target.

    Args:
        bases: plain schemes by type, the preferred one first.
        operators: of the float file, sized; what stays in float is chosen among them; none where nothing may.
        bench: tries candidates.
        terms: what to keep to.
    """

    def __init__(self, bases: Sequence[Scheme], operators: Sequence[Operator], bench: Bench, terms: Terms) -> None:
        self._bases = bases
        self._operators = operators
        self._bench = bench
        self._terms = terms
        self._proxies: dict[str, Trial] = {}
        self._schemes: dict[str, Scheme] = {}
        self._full: dict[str, Trial] = {}
        self._layers: dict[str, float] = {}
        self._asked: set[str] = set()
        self._left_out: set[str] = set()

    def run(self) -> Outcome | None:
        """The best that was found, or None where no candidate can be made.

        The waves: plain ranges; rounded weights and float parts; neighbours of the best; what makes spectra or scales
        the inputs in float, where none of those holds; worst layers in float. Then the survivors on all selection
        samples, the other types in the winner's manner, and the choice among types.
        """
        first = self._first_base()
        if first is None:
            return None
        effort, parts = self._terms.effort, space.parts(self._operators)
        self._wave(space.ranges_wave(first, effort))
        if not self._close_enough(first):
            self._wave(space.rounding_wave(first, effort, parts))
            self._wave(space.around_wave(self._best(first), effort, parts))
            fronts = space.fronts(self._operators)
            if fronts and not self._holds(self._proxies[self._best(first).name]):
                self._wave(space.rounding_wave(first, effort, fronts))
            self._layer_wave(first)
            self._wave(self._tool_schemes(first, parts))
        winner = self._settle(first)
        finalists = [winner, *self._other_types(first, winner)]
        times_ms = self._bench.times_ms(finalists) if len(finalists) > 1 else {}
        if not times_ms:
            finalists = [each for each in finalists if each.tool not in _OWN_ARITHMETIC] or finalists
        chosen = halving.choose([self._full[each.name] for each in finalists], times_ms,
                                size_bytes=self._terms.size_bytes, limit=self._terms.limit)  # fmt: skip
        return Outcome(chosen=self._schemes[chosen.name], trials={**self._proxies, **self._full},
                       schemes=self._schemes, layers=self._layers, left_out=len(self._left_out))  # fmt: skip

    def _first_base(self) -> Scheme | None:
        """The first type that is no worse than the others beyond what types differ by, as it is.

        Where every type loses an output, that hides what tells them apart, such as products that saturate: they are
        compared with the net's ends in float then.
        """
        tried = self._by_base(None)
        for part in (*space.parts(self._operators), *space.fronts(self._operators)):
            if any(not trial.faulty for _, trial in tried):
                break
            tried = self._by_base(part) or tried
        sound = [(base, trial) for base, trial in tried if not trial.faulty] or tried
        if not sound:
            return None
        least = min(trial.error for _, trial in sound)
        return next(base for base, trial in sound if trial.error <= halving.CLEARLY_CLOSER * least)

    def _by_base(self, part: Part | None) -> list[tuple[Scheme, Trial]]:
        """Each type that can be made, with what it comes to: plain, or with rounded weights and a part in float."""
        found = []
        for base in self._bases:
            scheme = base if part is None else space.in_float(structs.replace(base, rounding="compensated"), part)
            if (trial := self._try(scheme)) is not None:
                found.append((base, trial))
        return found

    def _try(self, scheme: Scheme) -> Trial | None:
        """A proxy: on few samples, once; none where the bound is reached, and the best so far stands."""
        if scheme.name not in self._proxies:
            if scheme.name not in self._asked and 0 < self._terms.most <= len(self._asked):
                self._left_out.add(scheme.name)
                return None
            self._asked.add(scheme.name)
            trial = self._bench.attempt(scheme, self._terms.effort.proxy_samples)
            if trial is None:
                return None
            self._proxies[scheme.name] = trial
            self._schemes[scheme.name] = scheme
        return self._proxies[scheme.name]

    def _wave(self, schemes: Sequence[Scheme]) -> None:
        for scheme in schemes:
            self._try(scheme)

    def _of_type(self, base: Scheme) -> list[Trial]:
        return [trial for trial in self._proxies.values() if trial.speed_class == speed_class(base)]

    def _best(self, base: Scheme) -> Scheme:
        return self._schemes[halving.best(self._of_type(base)).name]

    def _close_enough(self, base: Scheme) -> bool:
        trial = halving.best(self._of_type(base))
        return not trial.faulty and trial.error <= _CLOSE_ENOUGH

    def _holds(self, trial: Trial) -> bool:
        """Whether it is as close as it has to be, and loses no output."""
        return not trial.faulty and trial.error <= self._terms.limit

    def _layer_wave(self, base: Scheme) -> None:
        """The worst layers in float, one alone first, then together."""
        best = self._best(base)
        trial = self._proxies[best.name]
        effort = self._terms.effort
        if not self._holds(trial):
            effort = structs.replace(effort, suspects=max(effort.suspects, _RESCUE_SUSPECTS),
                                     float_share=max(effort.float_share, _RESCUE_SHARE))  # fmt: skip
        gains: dict[str, float] = {}
        for name in space.suspects(self._operators, best, effort):
            alone = self._try(space.with_layers(best, [name]))
            if alone is not None and not alone.faulty:
                gains[name] = trial.error**2 - alone.error**2
        whole = trial.error**2 or 1.0
        self._layers = {name: gain / whole for name, gain in gains.items()}
        together: list[str] = []
        for name in floats.worst_first(gains, self._operators)[:MOST_LAYERS]:
            if floats.share([*together, name], self._operators) <= effort.float_share:
                together.append(name)
                self._try(space.with_layers(best, together))

    def _tool_schemes(self, base: Scheme, parts: Sequence[Part]) -> list[Scheme]:
        """Other quantizers for the same runtime, plain and with what is best for the runtime's own."""
        whole = [structs.replace(base, tool=tool) for tool in self._terms.effort.tools]
        return [*whole, *(structs.replace(each, rounding="compensated") for each in whole)] + [
            space.in_float(structs.replace(each, rounding="compensated"), part) for each in whole for part in parts[:1]
        ]

    def _settle(self, base: Scheme) -> Scheme:
        """The best of the survivors on all selection samples; with layers in float only where they are worth it."""
        for trial in halving.survivors(self._of_type(base), self._terms.effort.survivors):
            self._complete(self._schemes[trial.name])
        settled = [self._full[name] for name in self._proxies if name in self._full]
        plain = [each for each in settled if not self._has_layers(each.name)]
        best = halving.best(settled)
        if plain and self._has_layers(best.name):
            without = halving.best(plain)
            as_close = _WORTH_A_LAYER * without.error < best.error or without.error <= _CLOSE_ENOUGH
            if as_close and self._holds(without):
                best = without
        return self._worth_its_bytes(best)

    def _worth_its_bytes(self, best: Trial) -> Scheme:
        """Without its float part, where that makes the file clearly larger and not clearly closer."""
        scheme = self._schemes[best.name]
        if scheme.part and (bare := self._complete(space.in_float(scheme, None))) is not None:
            grows = best.size_bytes > halving.SAME_SIZE * bare.size_bytes
            as_close = _WORTH_BYTES * bare.error < best.error or bare.error <= _CLOSE_ENOUGH
            if grows and as_close and self._holds(bare):
                return self._schemes[bare.name]
        return scheme

    def _has_layers(self, name: str) -> bool:
        """Whether more than a cheap end stays in float."""
        return "layer" in self._schemes[name].part

    def _complete(self, scheme: Scheme) -> Trial | None:
        if scheme.name not in self._full:
            trial = self._bench.attempt(scheme, 0)
            if trial is None:
                return None
            self._full[scheme.name] = trial
            self._schemes[scheme.name] = scheme
        return self._full[scheme.name]

    def _other_types(self, base: Scheme, winner: Scheme) -> list[Scheme]:
        """The winner's manner with each other type and per tensor, and the best of every other tool, where it can be.

        One scale for all weights of a layer makes smaller files, and products that some kernels are quicker at.
        """
        found = []
        for other in self._bases:
            if speed_class(other) != speed_class(base):
                scheme = structs.replace(winner, activation=other.activation, weight_bits=other.weight_bits,
                                         matmul_per_tensor=other.matmul_per_tensor)  # fmt: skip
                if self._complete(scheme) is not None:
                    found.append(scheme)
        if self._terms.effort.per_tensor and winner.per_channel:
            scheme = structs.replace(winner, per_channel=False)
            if self._complete(scheme) is not None:
                found.append(scheme)
        for tool in self._terms.effort.tools:
            made = [trial for trial in self._proxies.values() if self._schemes[trial.name].tool == tool]
            if made and self._complete(best := self._schemes[halving.best(made).name]) is not None:
                found.append(best)
        return found


def speed_class(scheme: Scheme) -> str:
    """Candidates of one class do the same arithmetic.

    >>> speed_class(Scheme(activation="uint8", weight_bits=7))
    'u8s7'
    """
    return "-".join(word for word in (scheme.types, scheme.tool, "matmul" * scheme.matmul_per_tensor,
                                 "" if scheme.per_channel else "tensor") if word)  # fmt: skip
