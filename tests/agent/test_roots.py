"""The compiled road from an observation to a root: torch's numbers, and a row's own in any company."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from agent.config import NetworkConfig
from agent.networks import roots as roots_module
from agent.networks.model import StochasticMuZero
from agent.networks.roots import GROUP, CompiledRoots
from agent.planner import Planner
from agent.policy import Observations
from agent.search import SearchConfig
from agent.search.weights import SearchInputError
from agent.search_policy import SearchPolicy

ROOT = Path(__file__).resolve().parents[2]
SMALL = NetworkConfig(width=40, encoder_width=8, latent=24, hidden=40, codes=4, support_atoms=11)
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "window and account": {"window": (64, 8), "account": (8,)},
    "odd sizes": {"window": (7, 3), "account": (5,)},
    "two windows": {"late": (5, 2), "early": (9, 3), "account": (4,)},
    "a window alone": {"window": (6, 5)},
    "no window": {"observation": (4,)},
    "an image": {"picture": (3, 5, 5), "number": (1,)},
}


def lively(shapes: dict[str, tuple[int, ...]], actions: int = 3, config: NetworkConfig = SMALL) -> StochasticMuZero:
    """A model whose heads are not the zeros they start as."""
    torch.manual_seed(3)
    model = StochasticMuZero(shapes, actions, config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def compiled(model: StochasticMuZero) -> CompiledRoots:
    roots = CompiledRoots.export(model, model.core.export())
    assert roots is not None
    return roots


def observations(model: StochasticMuZero, batch: int) -> dict[str, Any]:
    rng = np.random.default_rng(batch)
    return {name: rng.standard_normal((batch, *shape)).astype(np.float32) for name, shape in model.shapes.items()}


def by_torch(model: StochasticMuZero, observed: Observations) -> tuple[Any, Any, Any]:
    with torch.inference_mode():
        state = model.core.predict(model.representation({k: torch.from_numpy(v) for k, v in observed.items()}))
        return state.latent.numpy(), state.policy_logits.numpy(), model.core.read(state.value_logits).numpy()


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_roots_are_torchs_up_to_rounding(shapes: dict[str, tuple[int, ...]], depth: int) -> None:
    model = lively(shapes, config=SMALL.model_copy(update={"depth": depth}))
    observed = observations(model, 9)
    for ours, theirs in zip(compiled(model)(observed), by_torch(model, observed), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_roots_of_the_default_network_are_torchs_too() -> None:
    model = lively({"window": (64, 8), "account": (8,)}, actions=5, config=NetworkConfig())
    observed = observations(model, 3)
    for ours, theirs in zip(compiled(model)(observed), by_torch(model, observed), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("batch", [2, 3, 4, 5, GROUP, GROUP + 1, 2 * GROUP + 7])
def test_a_row_has_the_same_bits_alone_and_in_any_batch(batch: int) -> None:
    model = lively(SHAPES["two windows"])
    roots, observed = compiled(model), observations(model, batch)
    together = roots(observed)
    reversed_ = roots({name: entry[::-1] for name, entry in observed.items()})
    for row in range(batch):
        alone = roots({name: entry[row : row + 1] for name, entry in observed.items()})
        for one, many, backwards in zip(alone, together, reversed_, strict=True):
            np.testing.assert_array_equal(one[0], many[row])
            np.testing.assert_array_equal(one[0], backwards[batch - 1 - row])


def test_arguments_are_not_changed_and_results_are_nobody_elses() -> None:
    model = lively(SHAPES["odd sizes"])
    roots, observed = compiled(model), observations(model, 4)
    copies = {name: entry.copy() for name, entry in observed.items()}
    first = roots(observed)
    kept = [part.copy() for part in first]
    roots(observations(model, 6))
    for part, copy in zip(first, kept, strict=True):
        np.testing.assert_array_equal(part, copy)
    for name, entry in observed.items():
        np.testing.assert_array_equal(entry, copies[name])


@pytest.mark.parametrize("backbone", ["resnet", "lstm", "transformer"])
def test_other_backbones_have_no_compiled_form_and_still_decide_each_row_alone(backbone: Any) -> None:
    model = lively(SHAPES["odd sizes"], config=SMALL.model_copy(update={"backbone": backbone}))
    assert CompiledRoots.export(model, model.core.export()) is None
    assert_rows_are_alone(model)


def test_a_policy_decides_each_row_as_if_it_were_alone() -> None:
    assert_rows_are_alone(lively(SHAPES["window and account"]))


def assert_rows_are_alone(model: StochasticMuZero) -> None:
    policy = SearchPolicy(model, SearchConfig(simulations=12))
    observed = observations(model, 7)
    together = policy.act(observed)
    for row in range(7):
        alone = policy.act({name: entry[row : row + 1] for name, entry in observed.items()})
        for name in ("action", "policy", "prior", "value", "q_values", "visits", "chance_probabilities"):
            np.testing.assert_array_equal(getattr(alone, name)[0], getattr(together, name)[row])


def test_a_reader_with_an_unknown_layer_is_left_to_torch() -> None:
    """A layer the compiled form does not know must not be skipped in silence."""
    model = lively(SHAPES["odd sizes"])
    reader: Any = model.representation.reader.readers["window"]
    reader.layers.append(nn.LayerNorm(40))
    assert CompiledRoots.export(model, model.core.export()) is None


def test_refreshing_plans_with_the_new_weights() -> None:
    model = lively(SHAPES["odd sizes"])
    planner, observed = Planner(model, SearchConfig(simulations=4)), observations(model, 2)
    before, _ = planner.plan(observed, action_mask=None, row_by_row=True)
    with torch.no_grad():
        model.representation.reader.out.weight.neg_()
    stale, _ = planner.plan(observed, action_mask=None, row_by_row=True)
    np.testing.assert_array_equal(before.root_value, stale.root_value)
    planner.refresh()
    after, logits = planner.plan(observed, action_mask=None, row_by_row=True)
    assert (before.root_value != after.root_value).all()
    np.testing.assert_allclose(logits, by_torch(model, observed)[1], rtol=1e-4, atol=1e-4)


def test_weights_and_observations_that_are_not_finite_are_named() -> None:
    model = lively(SHAPES["odd sizes"])
    policy, observed = SearchPolicy(model, SearchConfig(simulations=2)), observations(model, 3)
    observed["window"][2, 0, 0] = np.nan
    with pytest.raises(ValueError, match="'window', row 2"):
        policy.act(observed)
    with torch.no_grad():
        model.representation.reader.mix.weight[0, 0] = torch.inf
    with pytest.raises(SearchInputError, match="weight mix"):
        CompiledRoots.export(model, model.core.export())


COLD = """
import hashlib, sys
sys.path.insert(0, "tests/agent")
from test_roots import SHAPES, compiled, lively, observations
digest = hashlib.sha256()
for shapes in SHAPES.values():
    model = lively(shapes)
    for batch in (1, 16):
        for part in compiled(model)(observations(model, batch)):
            digest.update(part.tobytes())
print(digest.hexdigest())
"""


def test_a_compiling_process_and_a_loading_one_agree_to_the_last_bit(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    first, second = (
        subprocess.run(
            [sys.executable, "-c", COLD], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    )
    assert list(tmp_path.rglob("*.nbc")), "nothing was cached, so nothing was compared"
    assert first == second


def test_the_cache_key_covers_every_file_that_is_compiled() -> None:
    """numba's cache notices changes only in the file of the kernel it stores; the rest is in the digest."""
    from numba.core.dispatcher import Dispatcher

    used = {value.py_func.__module__ for value in vars(roots_module).values() if isinstance(value, Dispatcher)}
    assert used - {roots_module.__name__} <= {module.__name__ for module in roots_module.COMPILED_MODULES}
