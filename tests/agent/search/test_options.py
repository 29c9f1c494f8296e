"""What each option promises."""

import numpy as np
import pytest
from pydantic import ValidationError

from agent.search import SearchConfig, SearchEngine, SearchInputError, sample_actions


def test_forbidden_actions_are_never_visited(small_core, random_roots) -> None:
    roots = random_roots(batch=30, actions=5)
    forbidden = ~roots.arguments["action_mask"]
    for root in ("puct", "gumbel"):
        engine = SearchEngine(SearchConfig(simulations=40, root=root), small_core(actions=5))
        result = engine.search(**roots.arguments, explore=True)
        assert (result.visits[forbidden] == 0).all()
        assert (result.action_weights[forbidden] == 0.0).all()
        assert not forbidden[np.arange(30), result.action].any()


def test_every_simulation_goes_through_one_root_action(small_core, random_roots) -> None:
    for root in ("puct", "gumbel"):
        result = SearchEngine(SearchConfig(root=root), small_core()).search(
            **random_roots(batch=8).arguments, simulations=37, explore=True
        )
        assert (result.visits.sum(axis=1) == 37).all()
        np.testing.assert_allclose(result.action_weights.sum(axis=1), 1.0, rtol=1e-5)


def test_no_simulations_acts_by_the_prior(small_core, random_roots) -> None:
    arguments = random_roots(batch=8, masked=False).arguments
    result = SearchEngine(SearchConfig(), small_core()).search(**arguments, simulations=0)
    prior = np.exp(arguments["policy_logits"])
    np.testing.assert_allclose(result.action_weights, prior / prior.sum(axis=1, keepdims=True), rtol=1e-5)
    np.testing.assert_array_equal(result.action, arguments["policy_logits"].argmax(axis=1))
    np.testing.assert_array_equal(result.root_value, arguments["values"])
    assert (result.visits == 0).all()
    assert (result.depth == 0).all()


def test_gumbel_without_simulations_or_noise_acts_by_the_prior(small_core, random_roots) -> None:
    arguments = random_roots(batch=8, masked=False).arguments
    result = SearchEngine(SearchConfig(root="gumbel"), small_core()).search(**arguments, simulations=0)
    np.testing.assert_array_equal(result.action, arguments["policy_logits"].argmax(axis=1))


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_no_leaf_is_deeper_than_max_depth(small_core, random_roots, limit) -> None:
    engine = SearchEngine(SearchConfig(simulations=60, max_depth=limit), small_core(actions=2, codes=1))
    result = engine.search(**random_roots(batch=3, actions=2, masked=False).arguments, with_tree=True)
    for row in range(3):
        assert max(node.depth for node in result.trees.nodes(row)) == limit
    assert (result.visits.sum(axis=1) == 60).all()


def test_a_floor_on_the_range_keeps_noise_small(bandit) -> None:
    """Two arms a hundredth apart: scaled by their own range the better one takes nearly all visits; with a floor of 1
    the difference is what it is, a hundredth, and the prior rules."""
    model = bandit([0.01, 0.0])
    shares = {}
    for floor in (0.0, 1.0):
        engine = SearchEngine(SearchConfig(simulations=200, discount=0.0, min_q_range=floor), model)
        shares[floor] = engine.search(*model.roots([0])).action_weights[0, 0]
    assert shares[0.0] > 0.9
    assert 0.5 <= shares[1.0] < 0.55


def test_dirichlet_noise_reaches_actions_the_prior_ignores(bandit) -> None:
    model = bandit([0.0, 0.0, 0.0], logits=[20.0, 0.0, 0.0])
    engine = SearchEngine(SearchConfig(simulations=50, dirichlet_alpha=10.0), model)
    quiet = engine.search(*model.roots([0] * 8))
    noisy = engine.search(*model.roots([0] * 8), explore=True, seeds=range(8))
    assert (quiet.visits[:, 1:] == 0).all()
    assert (noisy.visits[:, 1:] > 0).all()


def test_greedy_search_ignores_seeds(small_core, random_roots) -> None:
    engine = SearchEngine(SearchConfig(simulations=30), small_core())
    arguments = random_roots(batch=4).arguments
    with_seeds = engine.search(**arguments)
    without = engine.search(**{**arguments, "seeds": None})
    np.testing.assert_array_equal(with_seeds.visits, without.visits)


@pytest.mark.parametrize(("temperature", "expected"), [(0.5, [0.0, 0.2, 0.8]), (1.0, [0.0, 1 / 3, 2 / 3])])
def test_temperature_sharpens_the_visit_shares(temperature, expected) -> None:
    weights = np.tile(np.array([[0.0, 1 / 3, 2 / 3]], np.float32), (20_000, 1))
    drawn = sample_actions(weights, temperature=temperature, seeds=np.arange(20_000, dtype=np.uint64))
    np.testing.assert_allclose(np.bincount(drawn, minlength=3) / 20_000, expected, atol=0.015)


def test_temperature_zero_takes_the_largest_weight() -> None:
    weights = np.array([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]], np.float32)
    assert sample_actions(weights, temperature=0.0, seeds=np.zeros(2, np.uint64)).tolist() == [1, 0]


def test_chance_probabilities_are_distributions_where_visited(small_core, random_roots) -> None:
    result = SearchEngine(SearchConfig(simulations=30), small_core(codes=8)).search(**random_roots(batch=6).arguments)
    visited = result.visits > 0
    np.testing.assert_allclose(result.chance_probabilities[visited].sum(axis=-1), 1.0, rtol=1e-5)
    assert (result.chance_probabilities[~visited] == 0.0).all()


def test_new_weights_change_the_search_without_a_new_engine(small_core, random_roots) -> None:
    arguments = random_roots(batch=4).arguments
    engine = SearchEngine(SearchConfig(simulations=30), small_core(seed=1))
    engine.search(**arguments)
    engine.load(small_core(seed=2))
    fresh = SearchEngine(SearchConfig(simulations=30), small_core(seed=2)).search(**arguments)
    np.testing.assert_array_equal(engine.search(**arguments).q_values, fresh.q_values)


def test_an_empty_batch_is_an_empty_result(small_core) -> None:
    result = SearchEngine(SearchConfig(), small_core()).search(np.zeros((0, 12)), np.zeros((0, 3)), np.zeros(0))
    assert result.visits.shape == (0, 3)


def test_gumbel_does_not_normalise_over_the_tree() -> None:
    with pytest.raises(ValidationError, match="normalisation must be 'siblings'"):
        SearchConfig(root="gumbel", normalisation="tree")


def test_a_share_of_the_noise_is_a_smaller_fraction(small_core, random_roots) -> None:
    arguments = random_roots(batch=16, masked=False).arguments
    loud = SearchEngine(SearchConfig(dirichlet_fraction=0.8), small_core())
    quiet = SearchEngine(SearchConfig(dirichlet_fraction=0.2), small_core())
    half = loud.search(**arguments, explore=0.25)
    np.testing.assert_array_equal(half.visits, quiet.search(**arguments, explore=True).visits)
    assert (half.visits != loud.search(**arguments, explore=True).visits).any()
    np.testing.assert_array_equal(
        loud.search(**arguments, explore=0.0).visits, loud.search(**arguments, explore=False).visits
    )
    with pytest.raises(SearchInputError, match=r"explore must lie in \[0, 1\].*found 1.5"):
        loud.search(**arguments, explore=1.5)
