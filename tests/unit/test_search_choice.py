"""What stays in float, which candidates are tried and which one is taken: on nets and errors that are made up."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from msgspec import structs

from edgeship.build.backends.base import Scheme
from edgeship.build.schemes import S8S8, U8S7, U8S8
from edgeship.build.search import floats, halving, space
from edgeship.build.search.engine import Search, Terms, speed_class
from edgeship.build.search.expected import most_candidates
from edgeship.build.search.graph import Layer, Operator, sized
from edgeship.build.search.halving import Trial

_WEIGHT = Layer(weight=np.ones((4, 9)), convolution=False)


def _operator(name: str, inputs: Sequence[str], kind: str = "Conv", *, work: int = 0, size: int = 10) -> Operator:
    return Operator(name=name, kind=kind, inputs=tuple(inputs), outputs=(f"{name}:0",), elements=size,
                    multiplications=work, layer=_WEIGHT if work else None)  # fmt: skip


def _classifier() -> list[Operator]:
    return [
        _operator("first", ["x"], work=1_000, size=4_000),
        _operator("second", ["first:0"], work=90_000, size=4_000),
        _operator("third", ["second:0"], work=190_000, size=4_000),
        _operator("pool", ["third:0"], "GlobalAveragePool", size=64),
        _operator("dense", ["pool:0"], "Gemm", work=640, size=10),
        _operator("softmax", ["dense:0"], "Softmax", size=10),
    ]


def _detector() -> list[Operator]:
    return [
        _operator("body", ["x"], work=90_000, size=4_000),
        _operator("boxes", ["body:0"], work=9_000, size=900),
        _operator("scores", ["body:0"], work=9_000, size=900),
        _operator("sigmoid", ["scores:0"], "Sigmoid", size=900),
        _operator("join", ["boxes:0", "sigmoid:0"], "Concat", size=1800),
    ]


def test_the_head_is_what_lies_behind_the_last_costly_layer() -> None:
    assert floats.head(_classifier()) == ("pool", "dense", "softmax")


def test_a_net_that_is_all_head_keeps_none() -> None:
    assert floats.head([_operator("reshape", ["x"], "Reshape")]) == ()


def test_what_joins_outputs_is_found_with_everything_before_it_up_to_the_layers() -> None:
    assert floats.joined_ends(_detector()) == ("sigmoid", "join")
    assert floats.joined_ends(_classifier()) == ()
    assert [part.word for part in space.parts(_classifier())] == ["head"]
    assert "ends" in [part.word for part in space.parts(_detector())]


def _listener() -> list[Operator]:
    """Sound by its spectrum: a logarithm between two parts of a net."""
    return [
        _operator("waves", ["x"], work=60_000, size=4_000),
        _operator("power", ["waves:0"], "Mul", size=4_000),
        _operator("mel", ["power:0"], "MatMul", work=40_000, size=800),
        _operator("log", ["mel:0"], "Log", size=800),
        _operator("even", ["log:0"], "Sub", size=800),
        _operator("first", ["even:0"], work=90_000, size=4_000),
        _operator("second", ["first:0"], work=90_000, size=4_000),
        _operator("dense", ["second:0"], "Gemm", work=640, size=10),
    ]


def test_the_front_is_what_lies_before_the_first_layer_behind_a_logarithm() -> None:
    assert floats.front(_listener()) == ("waves", "power", "mel", "log", "even")
    assert floats.front(_classifier()) == ()
    logits = [*_classifier()[:-1], _operator("softmax", ["dense:0"], "Softmax"), _operator("end", ["softmax:0"], "Log")]
    assert floats.front(logits) == (), "no layer lies behind it"
    found = space.fronts(_listener())
    assert [part.word for part in found] == ["front", "front+head"]
    assert found[1].names == ("waves", "power", "mel", "log", "even", "dense")
    assert {part.exact for part in found} == {("waves", "power", "mel", "log", "even")}


def test_the_front_of_a_table_is_what_scales_its_columns() -> None:
    table = [
        _operator("rows", ["x"], "Reshape", size=8),
        _operator("centred", ["rows:0"], "Sub", size=8),
        _operator("alike", ["centred:0"], "Mul", size=8),
        _operator("first", ["alike:0"], "Gemm", work=640, size=10),
        _operator("biased", ["first:0"], "Add", size=10),
    ]
    assert floats.front(table) == ("rows", "centred", "alike")
    assert floats.front(table[:3]) == (), "no layer lies behind it"
    assert floats.front([table[0], *table[3:]]) == (), "nothing scales"
    gated = _operator("gated", ["alike:0", "biased:0"], "Mul", size=8)
    assert floats.front([*table, gated]) == ("rows", "centred", "alike"), "it reads what was computed too"


def test_the_front_stays_in_float_only_where_nothing_holds_without() -> None:
    def error(scheme: Scheme) -> float:
        return 0.01 if "front" in scheme.part else 0.4 if "waves" not in scheme.floats else 0.3

    found = Search([S8S8], _listener(), Table(error), _terms()).run()
    assert found is not None
    assert found.chosen.part.startswith("front")
    assert found.chosen.exact == ("waves", "power", "mel", "log", "even")
    bench = Table(lambda scheme: 0.04 if "front" not in scheme.part else 0.001)
    held = Search([S8S8], _listener(), bench, _terms()).run()
    assert held is not None
    assert "front" not in held.chosen.part
    assert not [name for name, _ in bench.asked if "exact" in name], "nobody asked for it"


def test_a_front_does_not_hide_which_type_saturates() -> None:
    """Every type loses the output unless the front is in float, and then one of them saturates."""

    def error(scheme: Scheme) -> float:
        return math.inf if "front" not in scheme.part else 0.5 if scheme.types == "u8s8" else 0.02

    found = Search([U8S8, S8S8], _listener(), Table(error), _terms()).run()
    assert found is not None
    assert (found.chosen.types, found.chosen.part.startswith("front")) == ("s8s8", True)


def test_sizes_come_from_the_shapes_of_a_run() -> None:
    plain = [Operator(name="a", kind="Conv", inputs=("x",), outputs=("y",), layer=_WEIGHT)]
    (found,) = sized(plain, {"y": (1, 4, 8, 8)})
    assert (found.elements, found.multiplications) == (256, 256 * 9)


def test_a_faulty_candidate_is_never_taken_while_another_is_there() -> None:
    dead = Trial(name="dead", speed_class="a", error=0.001, faulty=True)
    sound = Trial(name="sound", speed_class="a", error=0.2)
    assert halving.best([dead, sound]) is sound
    assert halving.survivors([dead, sound], 1) == [sound]
    assert halving.choose([dead, sound], {}) is sound


def test_noise_of_a_few_percent_turns_no_choice() -> None:
    first = Trial(name="u8s8", speed_class="u8s8", error=0.05)
    second = Trial(name="s8s8", speed_class="s8s8", error=0.0485)
    for ratio in (0.8, 0.95, 1.0, 1.05, 1.2):
        assert halving.choose([first, second], {"u8s8": 1.0, "s8s8": ratio}) is first


def test_of_two_that_are_as_fast_the_closer_one_is_taken() -> None:
    first = Trial(name="u8s8", speed_class="u8s8", error=0.05)
    second = Trial(name="u8s8-nncf", speed_class="u8s8-nncf", error=0.04)
    for ratio in (0.95, 1.0, 1.05):
        assert halving.choose([first, second], {"u8s8": 1.0, "u8s8-nncf": ratio}) is second
    assert halving.choose([first, second], {"u8s8": 1.0, "u8s8-nncf": 5.0}) is first
    assert halving.choose([first, second], {}) is first, "nothing is known of its speed"


def test_a_class_that_takes_far_longer_is_left_while_another_is_within_the_limit() -> None:
    quick = Trial(name="u8s8", speed_class="u8s8", error=0.014)
    slow = Trial(name="u8s8-nncf", speed_class="u8s8-nncf", error=0.004)
    times_ms = {"u8s8": 1.0, "u8s8-nncf": 13.0}
    assert halving.choose([quick, slow], times_ms, limit=0.1) is quick
    assert halving.choose([quick, slow], times_ms, limit=0.01) is slow, "the quick one must not ship"
    assert halving.choose([quick, slow], {"u8s8": 1.0, "u8s8-nncf": 1.0}, limit=0.1) is slow


def test_of_two_that_are_as_close_and_as_fast_the_clearly_smaller_one_is_taken() -> None:
    large = Trial(name="channel", speed_class="s8s8", error=0.0300, size_bytes=54)
    for error, small_bytes, taken in ((0.0305, 35, "tensor"), (0.0340, 35, "channel"), (0.0305, 52, "channel")):
        small = Trial(name="tensor", speed_class="s8s8-tensor", error=error, size_bytes=small_bytes)
        assert halving.choose([large, small], {"channel": 1.0, "tensor": 1.0}).name == taken


def test_what_exceeds_the_size_budget_is_taken_only_where_everything_does() -> None:
    small = Trial(name="small", speed_class="a", error=0.09, size_bytes=10)
    large = Trial(name="large", speed_class="b", error=0.01, size_bytes=99)
    assert halving.choose([large, small], {}, size_bytes=50) is small
    assert halving.choose([large, small], {}, size_bytes=5) is large


class Table:
    """A bench whose errors follow a rule."""

    def __init__(self, error: Callable[[Scheme], float | None], times_ms: dict[str, float] | None = None) -> None:
        self.error = error
        self.asked: list[tuple[str, int]] = []
        self.size: Callable[[Scheme], int] = lambda _scheme: 0
        self._times_ms = times_ms or {}

    def attempt(self, scheme: Scheme, samples: int) -> Trial | None:
        self.asked.append((scheme.name, samples))
        error = self.error(scheme)
        if error is None:
            return None
        return Trial(name=scheme.name, speed_class=speed_class(scheme), error=error, faulty=math.isinf(error),
                     size_bytes=self.size(scheme))  # fmt: skip

    def times_ms(self, schemes: Sequence[Scheme]) -> dict[str, float]:
        return {each.name: self._times_ms[each.types] for each in schemes if each.types in self._times_ms}


def _terms(effort: str = "normal", limit: float = 0.1) -> Terms:
    return Terms(effort=space.EFFORT[effort], limit=limit)


def _rule(scheme: Scheme) -> float:
    ranges = {"minmax": 0.10, "p99.999": 0.08, "p99.99": 0.09, "mse": 0.07}.get(scheme.estimator, 0.3)
    return ranges * (0.7 if scheme.rounding == "compensated" else 1.0) * (0.6 if scheme.part else 1.0)


def test_the_waves_find_the_best_of_every_kind_together() -> None:
    bench = Table(_rule)
    found = Search([S8S8], _classifier(), bench, _terms()).run()
    assert found is not None
    assert (found.chosen.estimator, found.chosen.rounding, found.chosen.part) == ("mse", "compensated", "head")
    assert found.chosen.floats == ("pool", "dense", "softmax")
    assert len([name for name, _ in bench.asked]) < 30
    # the chosen one was judged on all samples
    assert (found.chosen.name, 0) in bench.asked


def test_the_same_errors_give_the_same_choice() -> None:
    found = [Search([U8S8, S8S8, U8S7], _classifier(), Table(_rule), _terms()).run() for _ in range(3)]
    assert len({each.chosen.name for each in found if each is not None}) == 1


def test_speed_decides_between_types_where_it_was_measured() -> None:
    slow = Search([S8S8, U8S8], _classifier(), Table(_rule), _terms()).run()
    fast = Search([S8S8, U8S8], _classifier(), Table(_rule, {"s8s8": 2.0, "u8s8": 1.0}), _terms()).run()
    assert slow is not None
    assert fast is not None
    assert (slow.chosen.types, fast.chosen.types) == ("s8s8", "u8s8")


def test_a_type_that_saturates_gives_way_from_the_start() -> None:
    found = Search(
        [U8S8, U8S7], _classifier(), Table(lambda s: 9.0 if s.weight_bits == 8 else _rule(s)), _terms()
    ).run()
    assert found is not None
    assert found.chosen.types == "u8s7"


def test_a_head_that_every_type_loses_does_not_hide_which_one_saturates() -> None:
    def rule(scheme: Scheme) -> float:
        if not scheme.part:
            return math.inf
        if "first" in scheme.floats:
            return 0.03  # what saturates is in float, and the types are alike
        return 0.2 if scheme.weight_bits == 8 else _rule(scheme)

    bench = Table(rule)
    found = Search([U8S8, U8S7], _classifier(), bench, _terms()).run()
    assert found is not None
    assert (found.chosen.types, found.chosen.part) == ("u8s7", "head")
    assert len(bench.asked) <= most_candidates([U8S8, U8S7], _classifier(), space.EFFORT["normal"])


def test_where_nothing_can_be_made_nothing_is_found() -> None:
    assert Search([S8S8], _classifier(), Table(lambda _scheme: None), _terms()).run() is None


def test_a_layer_that_ruins_the_net_stays_in_float_although_it_is_dear() -> None:
    def rule(scheme: Scheme) -> float:
        return 0.02 if "second" in scheme.floats else 0.9

    found = Search([S8S8], _classifier(), Table(rule), _terms()).run()
    assert found is not None
    assert "second" in found.chosen.floats
    assert "second" in found.chosen.text
    assert found.layers["second"] > 0.9


def test_a_layer_that_gains_little_is_not_left_in_float() -> None:
    def rule(scheme: Scheme) -> float:
        return 0.0485 if "first" in scheme.floats else 0.05

    found = Search([S8S8], _classifier(), Table(rule), _terms()).run()
    assert found is not None
    assert "first" not in found.chosen.floats


def test_a_head_with_most_of_the_weights_goes_into_8_bits_with_the_rest() -> None:
    def growing(growth_bytes: int) -> list[Operator]:
        return [structs.replace(each, growth_bytes=growth_bytes if each.name == "dense" else 300_000 * bool(each.layer))
                for each in _classifier()]  # fmt: skip

    assert "dense" in floats.head(growing(30_000))
    assert "dense" not in floats.head(growing(900_000))


def test_a_float_part_must_be_worth_its_bytes() -> None:
    def search(share: float, growth: int) -> Scheme:
        bench = Table(lambda scheme: 0.05 * (share if scheme.part else 1.0))
        bench.size = lambda scheme: 100 + growth * bool(scheme.part)
        found = Search([S8S8], _classifier(), bench, _terms()).run()
        assert found is not None
        return found.chosen

    assert search(0.9, 50).part == ""
    assert search(0.5, 50).part == "head"
    assert search(0.9, 5).part == "head"


def test_a_quantizer_of_its_own_arithmetic_is_not_taken_where_speed_is_unknown() -> None:
    def rule(scheme: Scheme) -> float:
        return 0.01 if scheme.tool else 0.05

    found = Search([S8S8], _classifier(), Table(rule), _terms()).run()
    assert found is not None
    assert found.chosen.tool == ""
    assert any(name.startswith("s8s8-nncf") for name in found.trials)


def test_a_net_that_is_close_already_is_left_alone() -> None:
    bench = Table(lambda _scheme: 0.0001)
    found = Search([S8S8], _classifier(), bench, _terms()).run()
    assert found is not None
    assert (found.chosen.estimator, found.chosen.rounding, found.chosen.floats) == ("minmax", "nearest", ())
    assert len(bench.asked) <= 9


def test_more_effort_tries_more() -> None:
    counts = {}
    for effort in space.EFFORTS:
        bench = Table(_rule)
        Search([S8S8], _classifier(), bench, _terms(effort)).run()
        counts[effort] = len(bench.asked)
    assert counts["quick"] < counts["normal"] < counts["thorough"]


def test_names_of_schemes_are_folders_and_tell_them_apart() -> None:
    schemes = [S8S8, U8S8, U8S7, space.with_layers(S8S8, ["a/b:0"]), space.with_layers(S8S8, ["c"]),
               *space.ranges_wave(S8S8, space.EFFORT["thorough"])]  # fmt: skip
    names = {scheme.name for scheme in schemes}
    assert len(names) == len(schemes) - 1  # minmax is the plain one
    assert not any("/" in name or ":" in name for name in names)


def test_a_bound_keeps_the_first_candidates_and_says_how_many_it_left_out() -> None:
    whole = Table(_rule)
    unbounded = Search([U8S8, S8S8], _classifier(), whole, _terms()).run()
    proxies = list(dict.fromkeys(name for name, samples in whole.asked if samples))
    assert unbounded is not None
    assert unbounded.left_out == 0
    for most in (6, 9):
        bench = Table(_rule)
        found = Search([U8S8, S8S8], _classifier(), bench, structs.replace(_terms(), most=most)).run()
        assert found is not None
        assert [name for name, samples in bench.asked if samples] == proxies[:most]
        assert found.left_out > 0
        # what is taken is the best of those that were tried, judged on all samples
        tried = {name: trial.error for name, trial in found.trials.items() if trial.speed_class == "u8s8"}
        assert found.trials[found.chosen.name].error == min(tried.values())


def test_a_bound_that_nothing_reaches_changes_nothing() -> None:
    free, bound = Table(_rule), Table(_rule)
    one = Search([S8S8], _classifier(), free, _terms()).run()
    other = Search([S8S8], _classifier(), bound, structs.replace(_terms(), most=1000)).run()
    assert one == other
    assert free.asked == bound.asked


def test_a_larger_graph_is_never_given_more_candidates() -> None:
    for effort in space.EFFORT.values():
        counts = [space.most_tried(effort, operators) for operators in (0, 1, 40, 300, 1_000, 3_000, 100_000)]
        assert counts == sorted(counts, reverse=True)
        assert counts[-1] == 6
        # graphs of some hundred operators are searched as before
        assert counts[3] >= {10_000: 33, 40_000: 133, 160_000: 533}[effort.work]


def test_the_clock_expects_the_front_too() -> None:
    effort = space.EFFORT["normal"]
    plain = [structs.replace(each, kind="Abs") if each.kind == "Log" else each for each in _listener()]
    assert most_candidates([S8S8], _listener(), effort) > most_candidates([S8S8], plain, effort)


def test_the_clock_expects_no_more_than_the_bound_allows() -> None:
    effort = space.EFFORT["normal"]
    free, bound = (most_candidates([S8S8, U8S8], _classifier(), effort, most) for most in (10_000, 6))
    assert bound < free
    assert bound >= 6
