"""Actions with parts: candidates are drawn as said, and the engine searches them as the plain reference does."""

import numpy as np
import pytest

from agent.search import CoreWeights, SearchConfig, SearchEngine
from agent.search.candidates import draw_candidates, marginals, part_probabilities
from agent.search.reference import search_reference
from agent.search.torch_engine import TorchSearchEngine
from agent.search.weights import SearchInputError

FACTORS = (4, 3, 5)


def _weights(seed: int = 0, factors: tuple[int, ...] = FACTORS, codes: int = 4) -> CoreWeights:
    return CoreWeights.random(
        seed, actions=sum(factors), codes=codes, latent=12, hidden=20, atoms=11, action_factors=factors
    )


def _roots(batch: int, factors: tuple[int, ...] = FACTORS) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    mask = rng.random((batch, sum(factors))) < 0.8
    mask[:, np.cumsum([0, *factors[:-1]])] = True
    return {
        "latents": rng.random((batch, 12), dtype=np.float32),
        "policy_logits": rng.standard_normal((batch, sum(factors))).astype(np.float32),
        "values": rng.standard_normal(batch).astype(np.float32),
        "action_mask": mask,
        "seeds": rng.integers(2**63, size=batch, dtype=np.uint64),
    }


@pytest.mark.parametrize("root", ["puct", "gumbel"])
@pytest.mark.parametrize("explore", [True, False])
@pytest.mark.parametrize(("factors", "samples"), [(FACTORS, 6), ((9,), 4), ((2,) * 10, 16)])
def test_engine_grows_the_reference_tree(factors, samples, explore, root) -> None:
    weights, roots = _weights(factors=factors), _roots(5, factors)
    config = SearchConfig(simulations=40, samples=samples, root=root, discount=0.9, precision="float64")
    found = SearchEngine(config, weights).search(**roots, explore=explore, with_tree=True)
    expected = search_reference(config, weights, **roots, explore=explore)
    np.testing.assert_array_equal(found.visits, expected.result.visits)
    np.testing.assert_array_equal(found.action, expected.result.action)
    for name in ("action_weights", "q_values", "root_value", "chance_probabilities"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected.result, name), atol=1e-6, err_msg=name)
    for row, nodes in enumerate(expected.nodes):
        tree = list(found.trees.nodes(row))
        for name in ("parent", "edge", "visits", "choice"):
            assert [getattr(n, name) for n in tree] == [getattr(n, name) for n in nodes], name
        np.testing.assert_allclose([n.probability for n in tree], [n.probability for n in nodes], atol=1e-9)
    deep = [node.choice for nodes in expected.nodes for node in nodes if node.depth == 3]
    assert len(set(deep)) > 3, "nodes below the root draw candidates of their own"


def test_a_row_alone_is_the_row_in_a_batch() -> None:
    weights, roots = _weights(), _roots(70)
    engine = SearchEngine(SearchConfig(simulations=24, samples=6), weights)
    together = engine.search(**roots, explore=True)
    alone = engine.search(**{name: array[41:42] for name, array in roots.items()}, explore=True)
    np.testing.assert_array_equal(together.q_values[41:42], alone.q_values)
    np.testing.assert_array_equal(together.candidates.choices[41:42], alone.candidates.choices)


def test_candidates_follow_the_policy() -> None:
    policy = np.tile(np.array([[0.5, 0.5, 0.0, 0.1, 0.2, 0.7]]), (4_000, 1))
    drawn = draw_candidates(policy, (3, 3), count=8, seeds=np.arange(4_000, dtype=np.uint64))
    np.testing.assert_allclose(drawn.prior.sum(axis=1), 1.0)
    np.testing.assert_allclose(marginals(drawn.choices, drawn.prior, (3, 3)).mean(axis=0), policy[0], atol=0.02)


def test_a_combination_stands_once_with_the_share_of_its_draws() -> None:
    policy = np.array([[1.0, 0.0, 0.5, 0.5]])
    drawn = draw_candidates(policy, (2, 2), count=16, seeds=np.zeros(1, np.uint64))
    assert (drawn.prior[0] > 0).sum() == 2
    assert drawn.prior[0, 2:].sum() == 0
    assert set(map(tuple, drawn.choices[0, :2].tolist())) == {(0, 0), (0, 1)}


def test_an_even_share_in_the_proposal_is_weighed_out_of_the_prior() -> None:
    """More kinds of candidates, but those that only the even share proposed have the policy's own small prior."""
    policy = np.tile(np.array([[0.97, 0.01, 0.01, 0.01]]), (4_000, 1))
    seeds = np.arange(4_000, dtype=np.uint64)
    narrow = draw_candidates(policy, (4,), count=8, seeds=seeds)
    wide = draw_candidates(policy, (4,), count=8, seeds=seeds, even_share=0.5)
    assert (wide.prior > 0).sum() > 1.5 * (narrow.prior > 0).sum()
    assert marginals(wide.choices, wide.prior, (4,))[:, 0].mean() > 0.95


def test_masked_categories_are_never_candidates_of_the_root() -> None:
    roots = _roots(16)
    found = SearchEngine(SearchConfig(simulations=8, samples=6), _weights()).search(**roots, explore=True)
    taken = marginals(found.candidates.choices, found.candidates.prior, FACTORS)
    assert taken[~roots["action_mask"]].max() == 0.0
    assert found.policy_target(FACTORS)[~roots["action_mask"]].max() == 0.0


def test_acting_by_the_prior_takes_the_likeliest_combination() -> None:
    roots = _roots(32)
    roots["policy_logits"] *= 3
    found = SearchEngine(SearchConfig(samples=12), _weights()).search(**roots, simulations=0)
    policy = part_probabilities(roots["policy_logits"], roots["action_mask"], FACTORS)
    mode = np.stack([policy[:, part].argmax(axis=1) for part in (slice(0, 4), slice(4, 7), slice(7, 12))], axis=1)
    assert (found.chosen(found.action) == mode).all(axis=1).mean() > 0.8


def test_what_cannot_be_searched_is_refused() -> None:
    roots = _roots(2)
    engine = SearchEngine(SearchConfig(simulations=4, samples=4), _weights())
    trees = engine.search(**roots, with_tree=True).trees
    with pytest.raises(SearchInputError, match="cannot be resumed"):
        engine.search(**roots, resume=trees)
    roots["action_mask"][1, 4:7] = False
    with pytest.raises(SearchInputError, match="no category of part 1 of the action in row 1"):
        engine.search(**roots)
    with pytest.raises(SearchInputError, match="the torch search takes actions that are one choice"):
        TorchSearchEngine(SearchConfig(), _weights(), device="cpu")
    with pytest.raises(SearchInputError, match="sum to the 12 rows"):
        _weights(factors=(4, 3, 5)).__class__(**{**_weights().__dict__, "action_factors": (4, 3)})
