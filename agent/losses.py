"""What the model is asked to predict, and how wrong it is.

Legend: S sequences, K unroll, A actions, C chance codes, V atoms, L latent.

| term                               | target                                                          |
|------------------------------------|-----------------------------------------------------------------|
| policy, value at k = 0..K          | search policy and value target of that state                    |
| Q of the afterstate at k = 0..K−1  | the *same* value target as the state before the action          |
| chance at k = 0..K−1               | one-hot code of (oₖ, oₖ₊₁), detached                             |
| reward at k = 1..K                 | reward of the action taken at k−1                               |
| commitment                         | ‖c − cᵉ‖², c detached                                            |

Antonoglou et al. 2022, eq. (7)–(9).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from agent.config import LearnerConfig
from agent.networks.model import StochasticMuZero
from agent.networks.support import two_hot


@dataclass(frozen=True)
class TrainingBatch:
    """A `replay.Batch` as tensors, its observations decoded: entries [S, K+1, ...]."""

    observations: Mapping[str, Tensor]
    action: Tensor
    reward: Tensor
    policy: Tensor
    value: Tensor
    state_mask: Tensor
    step_mask: Tensor
    weight: Tensor


@dataclass(frozen=True)
class LossTerms:
    """Each term: a scalar, the importance-weighted mean over sequences, before the weights of LearnerConfig."""

    policy: Tensor
    value: Tensor
    q: Tensor
    chance: Tensor
    reward: Tensor
    commitment: Tensor

    def total(self, config: LearnerConfig) -> Tensor:
        """The weighted sum that is minimised."""
        return (
            config.policy_weight * self.policy
            + config.value_weight * (self.value + self.q)
            + config.chance_weight * self.chance
            + config.reward_weight * self.reward
            + config.commitment_weight * self.commitment
        )

    def items(self) -> dict[str, Tensor]:
        """Terms by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Predictions:
    """By-products of the losses, detached: value [S] at the sampled state, code_usage [C] (fractions),
    policy_entropy (scalar, nats)."""

    value: Tensor
    code_usage: Tensor
    policy_entropy: Tensor


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """−Σ target·log softmax(logits) over the last axis."""
    return -(target * logits.float().log_softmax(-1)).sum(-1)


def _half_gradient(latent: Tensor) -> Tensor:
    """The latent, with half its gradient (MuZero App. G): later steps shape the dynamics less than the first."""
    return 0.5 * latent + 0.5 * latent.detach()


def unroll_losses(model: StochasticMuZero, batch: TrainingBatch) -> tuple[LossTerms, Predictions]:
    """Unroll the model along the actions that were taken and the codes that were drawn, and compare.

    The chance encoder learns from reward, value and policy, through the code that enters the dynamics, and from
    the commitment term; never from the chance loss, which would teach it to say what is easy to predict. Two
    things keep it out: the target code is detached, and so are the imagined latents (k ≥ 1) that the chance
    head reads, since earlier codes have shaped those.
    """
    core = model.core
    unroll = batch.action.shape[1]
    sequences = batch.action.shape[0]

    first = {name: entry[:, :-1].flatten(0, 1) for name, entry in batch.observations.items()}
    second = {name: entry[:, 1:].flatten(0, 1) for name, entry in batch.observations.items()}
    code = model.encode(first, second)
    straight_through = code.straight_through.reshape(sequences, unroll, -1)
    code_target = code.one_hot.reshape(sequences, unroll, -1)

    latent = model.representation({name: entry[:, 0] for name, entry in batch.observations.items()})
    latents, q_logits, reward_logits = [latent], [], []
    root_afterstate = None
    for k in range(unroll):
        afterstate = core.afterstate(latent, batch.action[:, k])
        if root_afterstate is None:
            root_afterstate = afterstate
        latent, reward = core.dynamics(afterstate.latent, straight_through[:, k])
        latent = _half_gradient(latent)
        latents.append(latent)
        q_logits.append(afterstate.q_logits)
        reward_logits.append(reward)
    assert root_afterstate is not None, "LearnerConfig.unroll is at least 1"

    chance_logits = root_afterstate.chance_logits.unsqueeze(1)
    if unroll > 1:
        imagined = torch.stack(latents[1:unroll], 1).detach().flatten(0, 1)
        later = core.afterstate(imagined, batch.action[:, 1:].flatten()).chance_logits
        chance_logits = torch.cat([chance_logits, later.reshape(sequences, unroll - 1, -1)], 1)

    state = core.predict(torch.stack(latents, 1))
    value_target = two_hot(batch.value, core.atoms)
    reward_target = two_hot(batch.reward, core.atoms)
    policy_loss = _cross_entropy(state.policy_logits, batch.policy)
    value_loss = _cross_entropy(state.value_logits, value_target)
    q_loss = _cross_entropy(torch.stack(q_logits, 1), value_target[:, :-1])
    reward_loss = _cross_entropy(torch.stack(reward_logits, 1), reward_target)
    chance_loss = _cross_entropy(chance_logits, code_target)
    commitment = (code_target - code.soft.reshape(sequences, unroll, -1)).square().sum(-1)

    state_scale = batch.state_mask.float()
    state_scale[:, 1:] /= unroll
    step_scale = batch.step_mask.float() / unroll

    def mean(loss: Tensor, scale: Tensor) -> Tensor:
        return (batch.weight * (loss * scale).sum(1)).mean()

    terms = LossTerms(
        policy=mean(policy_loss, state_scale),
        value=mean(value_loss, state_scale),
        q=mean(q_loss, step_scale),
        chance=mean(chance_loss, step_scale),
        reward=mean(reward_loss, step_scale),
        commitment=mean(commitment, step_scale),
    )
    with torch.no_grad():
        prior = state.policy_logits[:, 0].softmax(-1)
        steps = batch.step_mask.unsqueeze(-1)
        usage = (code_target * steps).sum((0, 1)) / steps.sum().clamp(min=1)
        predictions = Predictions(
            value=core.read(state.value_logits[:, 0]),
            code_usage=usage,
            policy_entropy=-(prior * prior.clamp(min=1e-12).log()).sum(-1).mean(),
        )
    return terms, predictions
