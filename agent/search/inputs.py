"""The arguments of a search, parsed once at the edge.

Legend: B batch, A actions, L latent.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agent.search.config import SearchConfig
from agent.search.kernel import RootInputs
from agent.search.randomness import dirichlet_noise, gumbel_noise
from agent.search.result import SearchTrees
from agent.search.tables import TableModel
from agent.search.weights import CoreWeights, SearchInputError, require_finite


@dataclass(frozen=True)
class SearchInputs:
    """Checked and complete inputs of one search; every array is ours, C-contiguous and writable."""

    roots: RootInputs
    allowed: NDArray[np.bool_]  # [B, A]
    seeds: NDArray[np.uint64]  # [B]
    to_play: NDArray[np.int32]  # [B]
    owed: NDArray[np.int32]  # [B] simulations each row is owed
    simulations: int
    resumed: SearchTrees | None

    @property
    def batch(self) -> int:
        """B."""
        return len(self.allowed)

    @property
    def nodes(self) -> int:
        """Most nodes a tree can come to have."""
        held = self.roots.resumed if self.resumed is None else self.resumed.arrays.size
        return int((np.maximum(held, 1) + self.owed).max(initial=1))

    @property
    def visits(self) -> int:
        """Most visits a node can come to have."""
        held = self.roots.resumed if self.resumed is None else self.resumed.arrays.visits[:, 0]
        return int((np.maximum(held, 1) + self.owed).max(initial=1))


def _floats(name: str, values: ArrayLike, shape: tuple[int, ...], letters: str) -> NDArray[np.float32]:
    array = np.array(values, dtype=np.float32, order="C")
    if array.shape != shape:
        raise SearchInputError(f"{name} must have shape {letters} = {shape}; found {array.shape}")
    require_finite(name, array)
    return array


def check_inputs(
    config: SearchConfig,
    model: CoreWeights | TableModel,
    latents: ArrayLike,
    policy_logits: ArrayLike,
    values: ArrayLike,
    *,
    action_mask: ArrayLike | None,
    seeds: ArrayLike | None,
    explore: bool,
    simulations: int | None,
    to_play: ArrayLike | None,
    root_noise: ArrayLike | None,
    resume: SearchTrees | None,
) -> SearchInputs:
    """Parse the arguments of a search; raises SearchInputError saying what was expected and what was found."""
    count = config.simulations if simulations is None else simulations
    if count < 0:
        raise SearchInputError(f"simulations must not be negative; found {count}")
    batch, actions = len(np.asarray(values)), model.num_actions
    checked_latents = _floats("latents", latents, (batch, model.latent_size), "[B, L]")
    logits = _floats("policy_logits", policy_logits, (batch, actions), "[B, A]")
    root_values = _floats("values", values, (batch,), "[B]")

    allowed = np.ones((batch, actions), np.bool_)
    if action_mask is not None:
        allowed = np.array(action_mask, dtype=np.bool_, order="C")
        if allowed.shape != (batch, actions):
            raise SearchInputError(f"action_mask must have shape [B, A] = {(batch, actions)}; found {allowed.shape}")
        if not allowed.any(axis=1).all():
            row = int(np.flatnonzero(~allowed.any(axis=1))[0])
            raise SearchInputError(f"action_mask allows no action in row {row}; every row needs at least one")

    noisy = explore and (config.root == "gumbel" or config.dirichlet_fraction > 0.0)
    sampled = config.chance_selection == "sampled" and count > 0
    row_seeds = np.zeros(batch, np.uint64)
    if seeds is not None:
        row_seeds = np.array(seeds, dtype=np.uint64)
        if row_seeds.shape != (batch,):
            raise SearchInputError(f"seeds must have shape [B] = {(batch,)}; found {row_seeds.shape}")
    elif sampled or (noisy and root_noise is None):
        reason = "chance outcomes are sampled" if sampled else "exploration noise is asked for"
        raise SearchInputError(f"seeds are needed because {reason}; pass one uint64 per row, found none")

    noise = np.zeros((batch, actions), np.float64)
    if root_noise is not None:
        noise = np.array(root_noise, dtype=np.float64, order="C")
        if noise.shape != (batch, actions):
            raise SearchInputError(f"root_noise must have shape [B, A] = {(batch, actions)}; found {noise.shape}")
        require_finite("root_noise", noise)
    elif noisy and config.root == "gumbel":
        noise = gumbel_noise(row_seeds, actions)
    elif noisy:
        noise = dirichlet_noise(row_seeds, allowed, config.dirichlet_alpha)
    mixes = config.root == "puct" and (noisy or root_noise is not None)
    if mixes and root_noise is not None:
        noise = np.where(allowed, noise, 0.0)
        noise /= np.maximum(noise.sum(axis=1, keepdims=True), 1e-38)

    turn = np.zeros(batch, np.int32) if resume is None else resume.arrays.to_play.copy()
    if to_play is not None:
        turn = np.array(to_play, dtype=np.int32)
        if turn.shape != (batch,) or (batch and (turn.min() < 0 or turn.max() >= config.players)):
            raise SearchInputError(
                f"to_play must hold one player in [0, {config.players}) per row, shape {(batch,)}; found {turn}"
            )

    owed = np.full(batch, count, np.int32)
    held = np.zeros(batch, np.bool_)
    if resume is not None:
        if config.root == "gumbel":
            raise SearchInputError(
                "a gumbel root halves its actions over one whole budget and cannot resume a tree; use root: puct"
            )
        if len(resume) != batch or (resume.num_actions, resume.num_codes) != (actions, model.num_codes):
            raise SearchInputError(
                f"resume must hold {batch} trees of {actions} actions and {model.num_codes} codes; found "
                f"{len(resume)} of {resume.num_actions} and {resume.num_codes}"
            )
        if (turn != resume.arrays.to_play).any():
            raise SearchInputError(
                f"to_play must agree with the trees to resume, {resume.arrays.to_play}; found {turn}"
            )
        held = resume.arrays.size > 0
        # The budget counts visits of the root, so what was inherited is not paid for again.
        owed = np.where(held, np.maximum(count - (resume.arrays.visits[:, 0] - 1), 0), count).astype(np.int32)

    fraction = config.dirichlet_fraction if mixes else 0.0
    roots = RootInputs(checked_latents, logits, root_values, noise, held, fraction)
    return SearchInputs(roots, allowed, row_seeds, turn, owed, count, resume)
