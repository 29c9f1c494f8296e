"""The recurrent core: the four functions of the model that planning calls, on latents.

Whatever backbone reads the observation, the core is the same small residual MLP, so one compiled search
(agent/search) serves every backbone. The equations here are the contract with agent/search/weights.py.

Legend: B batch, A actions (categories of all parts, where an action has D parts), C chance codes, L latent, H hidden,
V atoms.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agent.networks.support import expectation, support_atoms
from agent.search.weights import CoreWeights

_MINMAX_EPSILON = 1e-5


class _MinMax(torch.autograd.Function):
    """(x − min)/(max − min + ε) with its gradient written out: a third of the operations of the composed one, and
    the learner's time on a CPU is mostly operations, not arithmetic."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        low, where_low = x.min(-1, keepdim=True)
        high, where_high = x.max(-1, keepdim=True)
        width = high - low + _MINMAX_EPSILON
        y: Tensor = (x - low) / width
        context.save_for_backward(y, width, where_low, where_high)
        return y

    @staticmethod
    def backward(context: Any, *gradients: Any) -> Tensor:
        y, width, where_low, where_high = context.saved_tensors
        scaled: Tensor = gradients[0] / width
        pulled = (scaled * y).sum(-1, keepdim=True)
        total = scaled.sum(-1, keepdim=True)
        # ∂y/∂max = −y/width and ∂y/∂min = (y − 1)/width, summed over the row, land on the two extreme entries.
        scaled = scaled.scatter_add(-1, where_high, -pulled)
        return scaled.scatter_add(-1, where_low, pulled - total)


def minmax(x: Tensor) -> Tensor:
    """Scale each row of [B, L] to [0, 1] (MuZero App. G): latents stay in the range of embeddings added to them.

    Where several entries share an extreme, the first one gets the extreme's gradient."""
    scaled: Tensor = _MinMax.apply(x)  # type: ignore[no-untyped-call]
    return scaled


class Afterstate(NamedTuple):
    """What follows an action, before chance has spoken: latent [B, L], chance_logits [B, C], q_logits [B, V]."""

    latent: Tensor
    chance_logits: Tensor
    q_logits: Tensor


class State(NamedTuple):
    """A decision state: latent [B, L], policy_logits [B, A], value_logits [B, V]."""

    latent: Tensor
    policy_logits: Tensor
    value_logits: Tensor


class _ResidualBlock(nn.Module):
    """x ↦ x + W₂·relu(W₁·LayerNorm(x)); also returns the hidden activation, from which a reward can be read."""

    def __init__(self, latent: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(latent)
        self.expand = nn.Linear(latent, hidden)
        self.contract = nn.Linear(hidden, latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.relu(self.expand(self.norm(x)))
        return x + self.contract(hidden), hidden


def _quiet_linear(inputs: int, outputs: int) -> nn.Linear:
    """A head that starts at zero: before learning, every action and outcome is equally good and equally likely."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class RecurrentCore(nn.Module):
    """φ (afterstate dynamics), ψ (afterstate prediction), g (dynamics) and f (prediction) on latents."""

    atoms: Tensor
    part_starts: Tensor

    def __init__(
        self,
        *,
        actions: int,
        codes: int,
        latent: int,
        hidden: int,
        support_limit: float,
        support_count: int,
        action_factors: tuple[int, ...] = (),
    ) -> None:
        """action_factors: categories of each part of an action, which sum to `actions`; empty: it is one choice."""
        super().__init__()
        self.action_factors = action_factors
        starts = torch.tensor([0, *action_factors[:-1]]).cumsum(0)
        self.register_buffer("part_starts", starts, persistent=False)
        self.register_buffer("atoms", torch.from_numpy(support_atoms(support_limit, support_count)))
        self.action_embedding = nn.Parameter(torch.randn(actions, latent) * 0.5)
        self.code_embedding = nn.Parameter(torch.randn(codes, latent) * 0.5)
        self.afterstate_block = _ResidualBlock(latent, hidden)
        self.dynamics_block = _ResidualBlock(latent, hidden)
        self.afterstate_hidden = nn.Linear(latent, hidden)
        self.prediction_hidden = nn.Linear(latent, hidden)
        self.chance_head = _quiet_linear(hidden, codes)
        self.q_head = _quiet_linear(hidden, support_count)
        self.reward_head = _quiet_linear(hidden, support_count)
        self.policy_head = _quiet_linear(hidden, actions)
        self.value_head = _quiet_linear(hidden, support_count)

    # The two steps of the dynamics and the heads that read them are apart, so that the learner, which takes K steps
    # one after the other, can read all K with one product each.

    def act(self, latent: Tensor, action: Tensor) -> Tensor:
        """φ. latent: [B, L], action: [B] int64, [B, D] where it has parts. Returns the afterstate [B, L]."""
        if self.action_factors:
            embedding = self.action_embedding[action + self.part_starts].sum(-2)
        else:
            embedding = self.action_embedding[action]
        out, _ = self.afterstate_block(latent + embedding)
        return minmax(out)

    def happen(self, afterstate: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        """g without its reward head. code: [B, C], a vector so that a straight-through gradient can pass. Returns the
        next latent [B, L] and the hidden activation [B, H] that holds the reward on the way to it."""
        out, hidden = self.dynamics_block(afterstate + code @ self.code_embedding)
        return minmax(out), hidden

    def afterstate(self, latent: Tensor, action: Tensor) -> Afterstate:
        """φ then ψ. latent: [B, L], action: [B] int64."""
        after = self.act(latent, action)
        hidden = self.read_afterstate(after)
        return Afterstate(after, self.chance_head(hidden), self.q_head(hidden))

    def read_afterstate(self, afterstate: Tensor) -> Tensor:
        """The hidden activation [B, H] that ψ's two heads share."""
        return torch.relu(self.afterstate_hidden(afterstate))

    def dynamics(self, afterstate: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        """g. Returns the next latent [B, L] and the logits of the reward on the way to it [B, V]."""
        state, hidden = self.happen(afterstate, code)
        return state, self.reward_head(hidden)

    def predict(self, latent: Tensor) -> State:
        """f."""
        hidden = torch.relu(self.prediction_hidden(latent))
        return State(latent, self.policy_head(hidden), self.value_head(hidden))

    def policy_parts(self, logits: Tensor) -> tuple[Tensor, ...]:
        """Policy numbers [..., A] as one distribution per part of an action; a single one where it is one choice."""
        return torch.split(logits, list(self.action_factors), -1) if self.action_factors else (logits,)

    def read(self, logits: Tensor) -> Tensor:
        """Categorical logits [..., V] as scalars [...] in units of the environment's reward."""
        return expectation(logits, self.atoms)

    def export(self) -> CoreWeights:
        """The same numbers as flat float32 arrays for the compiled search; linear weights as [in, out]."""

        def array(parameter: Tensor) -> NDArray[np.float32]:
            return np.ascontiguousarray(parameter.detach().float().cpu().numpy().copy())

        def linear(names: tuple[str, str], layer: nn.Linear) -> dict[str, NDArray[np.float32]]:
            weight, bias = names
            return {weight: np.ascontiguousarray(array(layer.weight).T), bias: array(layer.bias)}

        phi, g = self.afterstate_block, self.dynamics_block
        return CoreWeights(
            action_embedding=array(self.action_embedding),
            code_embedding=array(self.code_embedding),
            phi_gain=array(phi.norm.weight),
            phi_bias=array(phi.norm.bias),
            g_gain=array(g.norm.weight),
            g_bias=array(g.norm.bias),
            **linear(("phi_w1", "phi_b1"), phi.expand),
            **linear(("phi_w2", "phi_b2"), phi.contract),
            **linear(("g_w1", "g_b1"), g.expand),
            **linear(("g_w2", "g_b2"), g.contract),
            **linear(("psi_w1", "psi_b1"), self.afterstate_hidden),
            **linear(("f_w1", "f_b1"), self.prediction_hidden),
            **linear(("chance_w", "chance_b"), self.chance_head),
            **linear(("q_w", "q_b"), self.q_head),
            **linear(("reward_w", "reward_b"), self.reward_head),
            **linear(("policy_w", "policy_b"), self.policy_head),
            **linear(("value_w", "value_b"), self.value_head),
            atoms=array(self.atoms),
            reward_atoms=array(self.atoms),
            action_factors=self.action_factors,
        )
