"""The trees a search can hand out: their bookkeeping, their principal variations, and going on from them."""

import numpy as np
import pytest

from agent.search import SearchConfig, SearchEngine, SearchInputError, SearchTrees


@pytest.fixture
def engine(small_core) -> SearchEngine:
    return SearchEngine(SearchConfig(simulations=80, discount=0.9, precision="float64"), small_core(codes=3))


def test_visits_and_values_add_up_in_every_node(engine, random_roots) -> None:
    """A node's visits are its own evaluation and its children's; its value is the mean over just those."""
    trees = engine.search(**random_roots(batch=5).arguments, with_tree=True).trees
    for row in range(5):
        nodes = list(trees.nodes(row))
        for node in nodes:
            children = [child for child in nodes if child.parent == node.index]
            discount = 0.9 if node.kind == "chance" else 1.0
            assert node.visits == 1 + sum(child.visits for child in children)
            total = node.raw_value + sum(child.visits * (child.reward + discount * child.value) for child in children)
            assert node.value == pytest.approx(total / node.visits, abs=1e-9)
            assert all(child.kind != node.kind for child in children)


def test_the_principal_variation_follows_the_most_visited_edges(engine, random_roots) -> None:
    result = engine.search(**random_roots(batch=3).arguments, with_tree=True)
    for row in range(3):
        first, second = result.trees.principal_variation(row)[:2]
        assert first.action == result.action[row]
        assert first.visits == result.visits[row].max()
        assert first.q_value == pytest.approx(result.q_values[row, first.action])
        assert first.code_probability == pytest.approx(
            result.chance_probabilities[row, first.action, first.code], abs=1e-6
        )
        assert second.visits < first.visits


def test_there_is_a_variation_for_every_visited_action_best_first(engine, random_roots) -> None:
    result = engine.search(**random_roots(batch=3).arguments, with_tree=True)
    for row in range(3):
        lines = result.trees.principal_variations(row)
        assert {line[0].action for line in lines} == set(np.flatnonzero(result.visits[row]))
        visits = [line[0].visits for line in lines]
        assert visits == sorted(visits, reverse=True)


def test_a_variation_ends_where_the_tree_ends(engine, random_roots) -> None:
    trees = engine.search(**random_roots(batch=1, masked=False).arguments, simulations=1, with_tree=True).trees
    (step,) = trees.principal_variation(0)
    assert (step.code, step.reward, step.value) == (None, None, None)


def test_going_on_from_a_whole_tree_is_searching_longer(engine, random_roots) -> None:
    arguments = random_roots(batch=5).arguments
    half = engine.search(**arguments, simulations=30, with_tree=True)
    resumed = engine.search(**arguments, simulations=80, resume=half.trees, with_tree=True)
    whole = engine.search(**arguments, simulations=80, with_tree=True)
    np.testing.assert_array_equal(resumed.visits, whole.visits)
    np.testing.assert_array_equal(resumed.q_values, whole.q_values)
    for row in range(5):
        assert list(resumed.trees.nodes(row)) == list(whole.trees.nodes(row))


def likely_outcomes(trees: SearchTrees, actions: np.ndarray) -> list[int]:
    lines = [trees.principal_variation(row, int(action)) for row, action in enumerate(actions)]
    return [line[0].code if line and line[0].code is not None else -1 for line in lines]


@pytest.mark.parametrize("players", [1, 2])
def test_a_subtree_keeps_its_statistics(small_core, random_roots, players) -> None:
    engine = SearchEngine(SearchConfig(simulations=80, players=players, precision="float64"), small_core(codes=3))
    result = engine.search(**random_roots(batch=5).arguments, with_tree=True)
    codes = likely_outcomes(result.trees, result.action)
    below = result.trees.subtrees(result.action, codes)
    for row in range(5):
        afterstate = next(n for n in result.trees.nodes(row) if n.parent == 0 and n.edge == result.action[row])
        old_root = next(n for n in result.trees.nodes(row) if n.parent == afterstate.index and n.edge == codes[row])
        members = {old_root.index}
        for node in result.trees.nodes(row):
            if node.parent in members:
                members.add(node.index)
        kept = [(n.visits, n.value, n.raw_value) for n in result.trees.nodes(row) if n.index in members]
        assert [(n.visits, n.value, n.raw_value) for n in below.nodes(row)] == kept
    assert (below.arrays.to_play == 1 % players).all()


def test_inherited_visits_count_towards_the_budget(engine, random_roots) -> None:
    roots = random_roots(batch=5)
    first = engine.search(**roots.arguments, with_tree=True)
    below = first.trees.subtrees(first.action, likely_outcomes(first.trees, first.action))
    inherited = below.arrays.visits[:, 0].copy()
    assert (inherited > 1).all()
    then = engine.search(**random_roots(batch=5, seed=1).arguments, resume=below, with_tree=True)
    assert (then.trees.arrays.visits[:, 0] == 81).all()
    assert (then.visits.sum(axis=1) == 80).all()


def test_an_outcome_never_looked_at_starts_afresh(engine, random_roots) -> None:
    arguments = random_roots(batch=4).arguments
    first = engine.search(**arguments, with_tree=True)
    nothing = first.trees.subtrees(first.action, [-1] * 4)
    np.testing.assert_array_equal(engine.search(**arguments, resume=nothing).q_values, first.q_values)


def test_a_resumed_root_takes_the_new_evaluation_for_the_predicted_one(engine, random_roots) -> None:
    roots = random_roots(batch=3)
    first = engine.search(**roots.arguments, simulations=20, with_tree=True)
    louder = {**roots.arguments, "values": roots.arguments["values"] + np.float32(21.0)}
    again = engine.search(**louder, simulations=20, resume=first.trees)
    np.testing.assert_allclose(again.root_value, first.root_value + 1.0, rtol=1e-5)


def test_gumbel_refuses_to_resume(small_core, random_roots) -> None:
    engine = SearchEngine(SearchConfig(simulations=10, root="gumbel"), small_core())
    arguments = random_roots(batch=2).arguments
    trees = engine.search(**arguments, with_tree=True).trees
    with pytest.raises(SearchInputError, match="cannot resume"):
        engine.search(**arguments, resume=trees)


def test_expected_values_follow_from_the_children_in_a_resumed_tree_too(small_core, random_roots) -> None:
    config = SearchConfig(simulations=40, chance_values="expected", discount=0.9, precision="float64")
    engine = SearchEngine(config, small_core(codes=6))
    roots = random_roots(batch=8, masked=False).arguments
    first = engine.search(**roots, with_tree=True)
    likely = first.chance_probabilities[np.arange(8), first.action].argmax(axis=1)
    second = engine.search(**roots, with_tree=True, resume=first.trees.subtrees(first.action, likely))
    for trees in (first.trees, second.trees):
        for row in range(8):
            nodes = list(trees.nodes(row))
            for node in nodes:
                below = [child for child in nodes if child.parent == node.index]
                if node.kind == "decision":
                    count = 1 + sum(child.visits for child in below)
                    wanted = (node.raw_value + sum(child.visits * child.value for child in below)) / count
                else:
                    covered = sum(child.probability for child in below)
                    full = sum(child.probability * (child.reward + 0.9 * child.value) for child in below)
                    change = sum(0.9 * child.probability * (child.value - child.raw_value) for child in below)
                    share = covered**4
                    wanted = (1.0 - share) * (node.raw_value + change) + (share * full / covered if below else 0.0)
                assert node.value == pytest.approx(wanted, abs=1e-9)
