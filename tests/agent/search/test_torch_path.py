"""The torch path grows the same trees as the compiled engine, here on torch's CPU device."""

import numpy as np
import pytest
import torch

from agent.networks.core import RecurrentCore
from agent.search import SearchConfig, SearchEngine
from agent.search.torch_engine import TorchCore, TorchSearchEngine


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"root": "gumbel"},
        {"max_depth": 3},
        {"players": 2},
        {"chance_selection": "sampled"},
        {"chance_values": "expected"},
    ],
    ids=str,
)
@pytest.mark.parametrize(("actions", "codes", "batch"), [(2, 8, 1), (9, 4, 7), (3, 1, 150)])
def test_trees_are_those_of_the_compiled_engine(small_core, random_roots, actions, codes, batch, options) -> None:
    weights = small_core(actions=actions, codes=codes)
    arguments = random_roots(batch=batch, actions=actions).arguments
    config = SearchConfig(simulations=24, precision="float64", threads=2, **options)
    expected = SearchEngine(config, weights).search(**arguments, explore=True, with_tree=True)
    found = TorchSearchEngine(config, weights, device="cpu").search(**arguments, explore=True, with_tree=True)
    np.testing.assert_array_equal(found.visits, expected.visits)
    np.testing.assert_array_equal(found.action, expected.action)
    np.testing.assert_allclose(found.q_values, expected.q_values, atol=1e-6)
    np.testing.assert_allclose(found.action_weights, expected.action_weights, atol=1e-6)
    np.testing.assert_allclose(found.chance_probabilities, expected.chance_probabilities, atol=1e-6)
    for row in range(0, batch, 40):
        nodes = int(expected.trees.arrays.size[row])
        assert [(n.parent, n.edge, n.visits) for n in found.trees.nodes(row)] == [
            (n.parent, n.edge, n.visits) for n in expected.trees.nodes(row)
        ]
        np.testing.assert_allclose(
            found.trees.arrays.latent[row, :nodes], expected.trees.arrays.latent[row, :nodes], atol=1e-9
        )


def test_subtrees_travel_between_the_engines(small_core, random_roots) -> None:
    weights = small_core()
    config = SearchConfig(simulations=40, precision="float64")
    first = SearchEngine(config, weights).search(**random_roots(batch=5).arguments, with_tree=True)
    below = first.trees.subtrees(first.action, [0] * 5)
    arguments = random_roots(batch=5, seed=1).arguments | {"resume": below}
    expected = SearchEngine(config, weights).search(**arguments)
    found = TorchSearchEngine(config, weights, device="cpu").search(**arguments)
    np.testing.assert_array_equal(found.visits, expected.visits)


def test_new_weights_are_used(small_core, random_roots) -> None:
    arguments = random_roots(batch=4).arguments
    config = SearchConfig(simulations=20, precision="float64")
    engine = TorchSearchEngine(config, small_core(seed=1), device="cpu")
    engine.search(**arguments)
    engine.load(small_core(seed=2))
    expected = SearchEngine(config, small_core(seed=2)).search(**arguments)
    np.testing.assert_array_equal(engine.search(**arguments).visits, expected.visits)


@pytest.fixture
def core() -> RecurrentCore:
    torch.manual_seed(0)
    core = RecurrentCore(actions=4, codes=6, latent=20, hidden=30, support_limit=10.0, support_count=21)
    for parameter in core.parameters():  # heads start at zero; a test of them needs something to see
        torch.nn.init.normal_(parameter, std=0.4)
    return core


@torch.inference_mode()
def test_exported_weights_compute_what_the_network_computes(core) -> None:
    evaluate = TorchCore(core.export(), torch.device("cpu"), torch.float32).evaluate
    latents = torch.rand(8, 20)
    action, code = torch.arange(8) % 4, torch.arange(8) % 6

    after = core.afterstate(latents, action)
    latent, value, reward, probabilities = evaluate(latents, action, torch.zeros(8, dtype=torch.bool))
    torch.testing.assert_close(latent, after.latent)
    torch.testing.assert_close(value, core.read(after.q_logits))
    torch.testing.assert_close(probabilities[:, :6], after.chance_logits.softmax(-1))
    assert (reward == 0).all()

    state, reward_logits = core.dynamics(after.latent, torch.nn.functional.one_hot(code, 6).float())
    prediction = core.predict(state)
    latent, value, reward, probabilities = evaluate(after.latent, code, torch.ones(8, dtype=torch.bool))
    torch.testing.assert_close(latent, state)
    torch.testing.assert_close(value, core.read(prediction.value_logits))
    torch.testing.assert_close(reward, core.read(reward_logits))
    torch.testing.assert_close(probabilities[:, :4], prediction.policy_logits.softmax(-1))


@torch.inference_mode()
def test_the_compiled_search_sees_what_the_network_says(core) -> None:
    """Two simulations of one action: the first asks φ and ψ, the second g and f."""
    latents = torch.rand(1, 20)
    result = SearchEngine(SearchConfig(), core.export()).search(
        latents.numpy(),
        np.zeros((1, 4)),
        [0.0],
        action_mask=[[False, True, False, False]],
        simulations=2,
        with_tree=True,
    )
    _, afterstate, state = result.trees.nodes(0)
    after = core.afterstate(latents, torch.tensor([1]))
    assert afterstate.raw_value == pytest.approx(core.read(after.q_logits).item(), abs=1e-4)
    np.testing.assert_allclose(result.chance_probabilities[0, 1], after.chance_logits.softmax(-1)[0], atol=1e-5)
    code = torch.nn.functional.one_hot(torch.tensor([state.edge]), 6).float()
    next_latent, reward_logits = core.dynamics(after.latent, code)
    assert state.reward == pytest.approx(core.read(reward_logits).item(), abs=1e-4)
    assert state.raw_value == pytest.approx(core.read(core.predict(next_latent).value_logits).item(), abs=1e-4)
