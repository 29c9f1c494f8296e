"""The compiled engine grows the tree the plain reference grows."""

from itertools import product

import numpy as np
import pytest

from agent.search import SearchConfig, SearchEngine
from agent.search.reference import search_reference


def assert_same_results(found, expected, *, atol: float) -> None:
    np.testing.assert_array_equal(found.visits, expected.visits)
    np.testing.assert_array_equal(found.action, expected.action)
    np.testing.assert_array_equal(found.depth, expected.depth)
    for name in ("action_weights", "q_values", "root_value", "chance_probabilities"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=atol, err_msg=name)


def assert_same_trees(trees, expected_nodes) -> None:
    for row, expected in enumerate(expected_nodes):
        found = list(trees.nodes(row))
        for name in ("parent", "edge", "kind", "depth", "visits"):
            assert [getattr(n, name) for n in found] == [getattr(n, name) for n in expected], name
        for name in ("value", "raw_value", "reward", "probability"):
            np.testing.assert_allclose(
                [getattr(n, name) for n in found], [getattr(n, name) for n in expected], atol=1e-9, err_msg=name
            )


@pytest.mark.parametrize("root", ["puct", "gumbel"])
@pytest.mark.parametrize(("actions", "codes", "batch"), list(product((2, 3, 5, 9), (1, 8, 32), (1, 7, 64))))
def test_random_networks_with_masks_and_noise(small_core, random_roots, actions, codes, batch, root) -> None:
    weights = small_core(actions=actions, codes=codes, seed=actions * 100 + codes)
    roots = random_roots(batch=batch, actions=actions, seed=batch)
    config = SearchConfig(simulations=24, root=root, discount=0.95, precision="float64", max_considered_actions=4)
    found = SearchEngine(config, weights).search(**roots.arguments, explore=True, with_tree=True)
    # Rows are independent (test_rows.py), so a few of a large batch speak for all.
    rows = sorted({0, batch // 2, batch - 1})
    expected = search_reference(config, weights, **roots.rows(rows), explore=True)
    some = SearchEngine(config, weights).search(**roots.rows(rows), explore=True, with_tree=True)
    np.testing.assert_array_equal(found.visits[rows], some.visits)
    np.testing.assert_array_equal(found.q_values[rows], some.q_values)
    assert_same_results(some, expected.result, atol=1e-6)
    assert_same_trees(some.trees, expected.nodes)


@pytest.mark.parametrize(
    "options",
    [
        {"normalisation": "tree"},
        {"min_q_range": 0.5},
        {"root": "gumbel", "min_q_range": 0.5},
        {"chance_selection": "sampled"},
        {"chance_values": "expected"},
        {"chance_values": "expected", "root": "gumbel", "players": 2},
        {"chance_values": "expected", "normalisation": "tree", "max_depth": 3},
        {"max_depth": 1},
        {"max_depth": 4},
        {"players": 2},
        {"players": 3, "normalisation": "tree"},
        {"root": "gumbel", "players": 2, "max_depth": 3},
        {"dirichlet_alpha": 0.05, "dirichlet_fraction": 0.5},
        {"discount": 1.0, "c1": 0.5, "c2": 10.0},
    ],
    ids=str,
)
def test_every_option(small_core, random_roots, options) -> None:
    weights = small_core(codes=5)
    roots = random_roots(batch=4)
    config = SearchConfig(**{"simulations": 60, "precision": "float64", **options})
    turns = np.arange(4) % config.players
    found = SearchEngine(config, weights).search(**roots.arguments, explore=True, to_play=turns, with_tree=True)
    expected = search_reference(config, weights, **roots.arguments, explore=True, to_play=turns)
    assert_same_results(found, expected.result, atol=1e-6)
    assert_same_trees(found.trees, expected.nodes)


@pytest.mark.parametrize("root", ["puct", "gumbel"])
def test_single_precision_stays_within_a_ten_thousandth(small_core, random_roots, root) -> None:
    weights = small_core(codes=8, latent=40, hidden=72)
    roots = random_roots(batch=9, latent=40)
    config = SearchConfig(simulations=40, root=root)
    found = SearchEngine(config, weights).search(**roots.arguments, explore=True)
    expected = search_reference(config, weights, **roots.arguments, explore=True)
    assert_same_results(found, expected.result, atol=1e-4)


@pytest.mark.parametrize("simulations", [0, 1, 2, 3])
@pytest.mark.parametrize("root", ["puct", "gumbel"])
def test_smallest_budgets(small_core, random_roots, simulations, root) -> None:
    weights = small_core()
    roots = random_roots(batch=5)
    config = SearchConfig(root=root, precision="float64")
    found = SearchEngine(config, weights).search(**roots.arguments, simulations=simulations, explore=True)
    expected = search_reference(config, weights, **roots.arguments, simulations=simulations, explore=True)
    assert_same_results(found, expected.result, atol=1e-6)
