"""Guard 6: the chance encoder learns from reward, value and policy, and from nothing that would make it lie."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from agent.config import NetworkConfig
from agent.losses import LossTerms, TrainingBatch, unroll_losses
from agent.networks.model import StochasticMuZero

SHAPES = {"window": (6, 3), "account": (4,)}
UNROLL, SEQUENCES, ACTIONS = 3, 16, 3


@pytest.fixture
def model() -> StochasticMuZero:
    torch.manual_seed(0)
    model = StochasticMuZero(
        SHAPES, ACTIONS, NetworkConfig(width=32, encoder_width=16, latent=16, hidden=32, codes=4, support_atoms=11)
    )
    # Heads start at zero, where no gradient passes to what is below them; training leaves that point at once.
    for head in (model.core.chance_head, model.core.q_head, model.core.reward_head, model.core.policy_head):
        torch.nn.init.normal_(head.weight, std=0.3)
    torch.nn.init.normal_(model.core.value_head.weight, std=0.3)
    return model


@pytest.fixture
def batch() -> TrainingBatch:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return TrainingBatch(
        observations={name: normal(SEQUENCES, UNROLL + 1, *shape) for name, shape in SHAPES.items()},
        action=torch.randint(ACTIONS, (SEQUENCES, UNROLL), generator=generator),
        reward=normal(SEQUENCES, UNROLL),
        policy=normal(SEQUENCES, UNROLL + 1, ACTIONS).softmax(-1),
        value=normal(SEQUENCES, UNROLL + 1),
        q=normal(SEQUENCES, UNROLL),
        state_mask=torch.ones(SEQUENCES, UNROLL + 1, dtype=torch.bool),
        step_mask=torch.ones(SEQUENCES, UNROLL, dtype=torch.bool),
        weight=torch.ones(SEQUENCES),
    )


def _encoder_gradient(model: StochasticMuZero, batch: TrainingBatch, term: Callable[[LossTerms], Tensor]) -> float:
    model.zero_grad()
    terms, _ = unroll_losses(model, batch, consistency=True)
    term(terms).backward()
    return sum(float(p.grad.abs().sum()) for p in model.encoder.parameters() if p.grad is not None)


@pytest.mark.parametrize("term", ["reward", "value", "policy", "q", "commitment", "consistency"])
def test_the_encoder_learns_from(term: str, model: StochasticMuZero, batch: TrainingBatch) -> None:
    assert _encoder_gradient(model, batch, lambda terms: terms.items()[term]) > 1e-6


def test_the_encoder_learns_nothing_from_the_chance_loss(model: StochasticMuZero, batch: TrainingBatch) -> None:
    assert _encoder_gradient(model, batch, lambda terms: terms.chance) == 0.0


def test_the_chance_loss_teaches_the_chance_head_and_the_representation(
    model: StochasticMuZero, batch: TrainingBatch
) -> None:
    terms, _ = unroll_losses(model, batch)
    terms.chance.backward()
    for part in (model.core.chance_head, model.core.afterstate_block, model.representation):
        assert sum(float(p.grad.abs().sum()) for p in part.parameters() if p.grad is not None) > 1e-6


def test_every_parameter_gets_gradient_from_the_total(model: StochasticMuZero, batch: TrainingBatch) -> None:
    terms, _ = unroll_losses(model, batch)
    (terms.policy + terms.value + terms.q + terms.chance + terms.reward + terms.commitment).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert without == []


def test_the_code_fed_to_the_dynamics_is_one_hot(model: StochasticMuZero, batch: TrainingBatch) -> None:
    first = {name: entry[:, 0] for name, entry in batch.observations.items()}
    second = {name: entry[:, 1] for name, entry in batch.observations.items()}
    code = model.encode(first, second)
    torch.testing.assert_close(code.straight_through, code.one_hot)
    assert set(code.one_hot.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(code.one_hot.sum(-1), torch.ones(SEQUENCES))


def test_masked_steps_change_nothing(model: StochasticMuZero, batch: TrainingBatch) -> None:
    state_mask, step_mask = batch.state_mask.clone(), batch.step_mask.clone()
    state_mask[:, 2:], step_mask[:, 1:] = False, False

    def masked(**targets: Tensor) -> LossTerms:
        return unroll_losses(model, replace(batch, state_mask=state_mask, step_mask=step_mask, **targets))[0]

    garbage_reward, garbage_value, garbage_q = batch.reward.clone(), batch.value.clone(), batch.q.clone()
    garbage_reward[:, 1:], garbage_value[:, 2:], garbage_q[:, 1:] = 40.0, -40.0, 30.0
    before, after = masked(), masked(reward=garbage_reward, value=garbage_value, q=garbage_q)
    for name, value in before.items().items():
        assert value.item() == after.items()[name].item(), name


def test_consistency_measures_the_distance_to_the_represented_observations(
    model: StochasticMuZero, batch: TrainingBatch
) -> None:
    """Against a plain loop over steps; and its target is no way for gradient to reach the representation."""
    terms, _ = unroll_losses(model, batch, consistency=True)
    core = model.core
    at = [{name: entry[:, k] for name, entry in batch.observations.items()} for k in range(UNROLL + 1)]
    latent = model.representation(at[0])
    total = torch.zeros(SEQUENCES)
    for k in range(UNROLL):
        code = model.encode(at[k], at[k + 1]).one_hot
        latent, _ = core.dynamics(core.afterstate(latent, batch.action[:, k]).latent, code)
        total += 0.5 * (latent - model.representation(at[k + 1])).square().sum(-1) / UNROLL
    torch.testing.assert_close(terms.consistency, total.mean())
    assert unroll_losses(model, batch)[0].consistency.item() == 0.0
