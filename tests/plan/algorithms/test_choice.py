"""The integer program's choice against all combinations and against a dynamic program."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnxopt.errors import InputError
from onnxopt.plan.algorithms.choice import choose_algorithms, total_us, useful_options
from onnxopt.plan.algorithms.problem import LAYOUTS, Conversion, Layer, Network, Option
from onnxopt.validate import PlanError
from onnxopt.validate.algorithm_choice import (
    best_by_elimination,
    best_by_enumeration,
    validate_choice,
    windows,
)


def _network(seed: int, layers: int, options: int = 4) -> Network:
    """Layers in a row with a branch now and then; each region is read by one or two of them."""
    rng = np.random.default_rng(seed)
    made = tuple(
        Layer(
            f"conv-{n}",
            tuple(
                Option(
                    f"a{o}",
                    LAYOUTS[int(rng.integers(2))],
                    float(rng.uniform(1, 10)),
                    int(rng.integers(0, 1000)),
                    int(rng.integers(0, 300)),
                )
                for o in range(options)
            ),
        )
        for n in range(layers)
    )
    conversions = [Conversion(0, float(rng.uniform(0, 4)), (0,), True)]
    for n in range(layers):
        readers = tuple(m for m in (n + 1, n + 2) if m < layers and (m == n + 1 or rng.random() < 0.4))
        conversions.append(Conversion(n + 1, float(rng.uniform(0, 4)), (n,)))
        conversions.append(Conversion(n + 1, float(rng.uniform(0, 4)), readers, n == layers - 1))
    return Network(made, layers + 1, tuple(conversions))


@pytest.mark.parametrize("seed", range(12))
def test_the_choice_is_the_best_of_all_combinations(seed: int) -> None:
    network = _network(seed, 4)
    choice = choose_algorithms(network)
    validate_choice(network, choice, None)
    assert choice.status == "optimal"
    assert choice.microseconds == pytest.approx(best_by_enumeration(network))
    assert choice.microseconds == pytest.approx(best_by_elimination(network))


@pytest.mark.parametrize("seed", range(12))
def test_a_budget_is_kept_and_used_in_the_best_way(seed: int) -> None:
    network = _network(seed, 4, 3)
    free = choose_algorithms(network)
    options = free.options(network).values()
    used = max(o.workspace_bytes for o in options) + sum(o.constant_bytes for o in options)
    for budget in (used, used - 1, int(0.8 * used)):
        try:
            best = best_by_enumeration(network, budget)
        except ValueError:
            with pytest.raises(InputError, match="fits no choice"):
                choose_algorithms(network, budget)
            continue
        choice = choose_algorithms(network, budget)
        validate_choice(network, choice, budget)
        assert choice.microseconds == pytest.approx(best)


def test_a_network_of_many_layers_is_solved_to_the_optimum() -> None:
    network = _network(99, 120, 8)
    choice = choose_algorithms(network)
    validate_choice(network, choice, None)
    assert choice.status == "optimal"
    assert choice.microseconds == pytest.approx(best_by_elimination(network))


def test_windows_hold_all_that_touches_their_layers() -> None:
    network = _network(3, 9, 3)
    parts = list(windows(network, 3))
    assert len(parts) == 7
    for part in parts:
        assert choose_algorithms(part).microseconds == pytest.approx(best_by_enumeration(part))


def test_the_same_network_gives_the_same_choice() -> None:
    assert choose_algorithms(_network(7, 30)) == choose_algorithms(_network(7, 30))


def test_options_that_another_beats_never_enter() -> None:
    fast = Option("fast", "first", 1.0, 10, 0)
    assert useful_options([replace(fast, microseconds=2.0), fast, replace(fast, layout="last")]) == [1, 2]
    assert useful_options([fast, replace(fast, microseconds=2.0, workspace_bytes=0)]) == [0, 1]
    assert useful_options([fast, replace(fast, algorithm="same")]) == [0]


def test_a_tensor_read_twice_is_converted_once() -> None:
    last = Layer("a", (Option("x", "last", 1.0),))
    network = Network((last, replace(last, id="b")), 1, (Conversion(0, 5.0, (0, 1)), Conversion(0, 50.0, (), True)))
    choice = choose_algorithms(network)
    assert choice.regions == ("first",)
    assert choice.microseconds == total_us(network, (0, 0), ("first",)) == 7.0


def test_a_budget_below_every_choice_is_refused_with_figures() -> None:
    network = Network((Layer("conv-0", (Option("im2col", "first", 1.0, 4096, 100),)),), 0, ())
    with pytest.raises(InputError, match="4,196, 4,096 of them for 'conv-0'; raise the budget to 4,196 or more"):
        choose_algorithms(network, 1000)
    with pytest.raises(InputError, match="-1 bytes; allowed: 0 or more"):
        choose_algorithms(network, -1)
    with pytest.raises(InputError, match="conv-1: no algorithm can compute it"):
        choose_algorithms(Network((Layer("conv-1", ()),), 0, ()))


def test_a_network_without_convolutions_has_nothing_to_choose() -> None:
    assert choose_algorithms(Network((), 2, ())).microseconds == 0.0


def test_wrong_choices_are_found() -> None:
    network = _network(1, 3)
    choice = choose_algorithms(network)
    wrong = [
        replace(choice, microseconds=choice.microseconds + 0.1),
        replace(choice, bound_us=choice.microseconds + 1),
        replace(choice, chosen=(9, 0, 0)),
        replace(choice, chosen=choice.chosen[:2]),
        replace(choice, regions=tuple("last" if r == "first" else "first" for r in choice.regions)),
    ]
    for one in wrong:
        with pytest.raises(PlanError):
            validate_choice(network, one, None)
    with pytest.raises(PlanError, match="0 are allowed"):
        validate_choice(network, choice, 0)
