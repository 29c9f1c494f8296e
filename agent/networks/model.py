"""The whole model: h, φ, ψ, g, f and the chance encoder e (Antonoglou et al. 2022)."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from agent.config import NetworkConfig
from agent.networks.core import RecurrentCore
from agent.networks.representation import ChanceEncoder, Representation, Shapes


class ChanceCode(NamedTuple):
    """A code as the learner needs it. All are [B, C].

    soft:            the encoder's own output, a point of the simplex.
    one_hot:         the nearest code, detached.
    straight_through: one_hot in value, soft in gradient.
    """

    soft: Tensor
    one_hot: Tensor
    straight_through: Tensor


class StochasticMuZero(nn.Module):
    """All six functions under one roof, for observations of the given shapes and A discrete actions, or actions of
    several parts with A categories in all."""

    def __init__(
        self, shapes: Shapes, actions: int, config: NetworkConfig, action_factors: tuple[int, ...] = ()
    ) -> None:
        super().__init__()
        if action_factors and sum(action_factors) != actions:
            raise ValueError(f"action_factors {action_factors}: expected them to sum to {actions} actions")
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self.actions = actions
        self.action_factors = action_factors
        self.config = config
        self.representation = Representation(
            shapes, backbone=config.backbone, width=config.width, depth=config.depth, latent=config.latent
        )
        self.core = RecurrentCore(
            actions=actions,
            codes=config.codes,
            latent=config.latent,
            hidden=config.hidden,
            support_limit=config.support_limit,
            support_count=config.support_atoms,
            action_factors=action_factors,
        )
        self.encoder = ChanceEncoder(
            shapes,
            backbone=config.backbone,
            width=config.encoder_width,
            depth=config.encoder_depth,
            codes=config.codes,
        )

    def encode(self, observations: Mapping[str, Tensor], successors: Mapping[str, Tensor]) -> ChanceCode:
        """The code of what happened between two observations, with the straight-through estimator
        (Bengio et al. 2013; van den Oord et al. 2017): value of the one-hot code, gradient of the soft one."""
        soft = self.encoder(observations, successors).softmax(-1)
        one_hot = torch.nn.functional.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)
        return ChanceCode(soft, one_hot, soft + (one_hot - soft).detach())
