"""What the model is asked to predict, and how wrong it is.

Legend: S sequences, K unroll, A actions, C chance codes, V atoms, L latent.

| term                               | target                                                          |
|------------------------------------|-----------------------------------------------------------------|
| policy, value at k = 0..K          | search policy and value target of that state                    |
| Q of the afterstate at k = 0..K−1  | the same value target, unless the action was exploratory (targets) |
| chance at k = 0..K−1               | one-hot code of (oₖ, oₖ₊₁), detached                             |
| reward at k = 1..K                 | reward of the action taken at k−1                               |
| commitment                         | ‖c − cᵉ‖², c detached                                            |
| consistency at k = 1..K (option)   | the representation of oₖ, detached                               |

Antonoglou et al. 2022, eq. (7)–(9).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from agent.config import LearnerConfig
from agent.networks.core import RecurrentCore
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
    q: Tensor
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
    consistency: Tensor

    def total(self, config: LearnerConfig) -> Tensor:
        """The weighted sum that is minimised."""
        return (
            config.policy_weight * self.policy
            + config.value_weight * (self.value + self.q)
            + config.chance_weight * self.chance
            + config.reward_weight * self.reward
            + config.commitment_weight * self.commitment
            + config.consistency_weight * self.consistency
        )

    def items(self) -> dict[str, Tensor]:
        """Terms by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Predictions:
    """By-products of the losses, detached: value [S] at the sampled state, code_usage [C] (fractions),
    policy_entropy, chance_entropy (scalars, nats): of the prior there, and of the codes expected after the action."""

    value: Tensor
    code_usage: Tensor
    policy_entropy: Tensor
    chance_entropy: Tensor


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """−Σ target·log softmax(logits) over the last axis."""
    return -(target * logits.float().log_softmax(-1)).sum(-1)


def _policy_cross_entropy(core: RecurrentCore, logits: Tensor, target: Tensor) -> Tensor:
    """The log-probability of a combination is the sum over its parts, so the parts' losses add up."""
    parts = zip(core.policy_parts(logits), core.policy_parts(target), strict=True)
    losses = [_cross_entropy(own, wanted) for own, wanted in parts]
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum(0)


def _half_gradient(latent: Tensor) -> Tensor:
    """The latent, with half its gradient (MuZero App. G): later steps shape the dynamics less than the first."""
    return 0.5 * latent + 0.5 * latent.detach()


def _consistency(model: StochasticMuZero, batch: TrainingBatch, imagined: list[Tensor]) -> Tensor:
    """How far imagined latents are from what the representation makes of the observations that came: [S, K].

    Half the squared distance over L, the target detached, times L so that its size does not depend on the width.
    EfficientZero (Ye et al. 2021) compares projections by their cosine; plain distance as in TD-MPC (Hansen et al.
    2022) needs no projector, and latents scaled to [0, 1] have a scale of their own.
    """
    with torch.no_grad():
        later = {name: entry[:, 1:].flatten(0, 1) for name, entry in batch.observations.items()}
        target = model.representation(later).reshape(len(batch.action), len(imagined), -1)
    distance: Tensor = 0.5 * (torch.stack(imagined, 1) - target).square().sum(-1)
    return distance


def unroll_losses(
    model: StochasticMuZero,
    batch: TrainingBatch,
    *,
    target: StochasticMuZero | None = None,
    consistency: bool = False,
) -> tuple[LossTerms, Predictions]:
    """Unroll the model along the actions that were taken and the codes that were drawn, and compare.

    The chance encoder learns from reward, value and policy, through the code that enters the dynamics, and from
    the commitment term; never from the chance loss, which would teach it to say what is easy to predict. Two
    things keep it out: the target code is detached, and so are the imagined latents (k ≥ 1) that the chance
    head reads, since earlier codes have shaped those. consistency: work out that term too (else it is 0), against the
    representation of `target` (default: the model's own).
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
    latents, afterstates, reward_hidden = [latent], [], []
    for k in range(unroll):
        afterstate = core.act(latent, batch.action[:, k])
        latent, hidden = core.happen(afterstate, straight_through[:, k])
        latent = _half_gradient(latent)
        latents.append(latent)
        afterstates.append(afterstate)
        reward_hidden.append(hidden)
    after_hidden = core.read_afterstate(torch.stack(afterstates, 1))
    q_logits = core.q_head(after_hidden)
    reward_logits = core.reward_head(torch.stack(reward_hidden, 1))

    chance_logits = core.chance_head(after_hidden[:, :1])
    if unroll > 1:
        imagined = torch.stack(latents[1:unroll], 1).detach()
        later = core.read_afterstate(core.act(imagined, batch.action[:, 1:]))
        chance_logits = torch.cat([chance_logits, core.chance_head(later)], 1)

    state = core.predict(torch.stack(latents, 1))
    scalars = torch.cat((batch.value, batch.q, batch.reward), 1)
    value_target, q_target, reward_target = torch.split(
        two_hot(scalars, core.atoms), [unroll + 1, unroll, unroll], dim=1
    )
    policy_loss = _policy_cross_entropy(core, state.policy_logits, batch.policy)
    value_loss = _cross_entropy(state.value_logits, value_target)
    q_loss = _cross_entropy(q_logits, q_target)
    reward_loss = _cross_entropy(reward_logits, reward_target)
    chance_loss = _cross_entropy(chance_logits, code_target)
    surprise = _consistency(target or model, batch, latents[1:]) if consistency else torch.zeros_like(reward_loss)
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
        consistency=mean(surprise, state_scale[:, 1:]),
    )
    with torch.no_grad():
        prior = torch.cat([part.softmax(-1) for part in core.policy_parts(state.policy_logits[:, 0])], -1)
        steps = batch.step_mask.unsqueeze(-1)
        usage = (code_target * steps).sum((0, 1)) / steps.sum().clamp(min=1)
        expected = chance_logits[:, 0].float().log_softmax(-1)
        uncertainty = -(expected.exp() * expected).sum(-1) * batch.step_mask[:, 0]
        predictions = Predictions(
            value=core.read(state.value_logits[:, 0]),
            code_usage=usage,
            policy_entropy=-(prior * prior.clamp(min=1e-12).log()).sum(-1).mean(),
            chance_entropy=uncertainty.sum() / batch.step_mask[:, 0].sum().clamp(min=1),
        )
    return terms, predictions
