"""The arguments of a search, parsed once at the edge.

Legend: B batch, A actions, K candidates, D parts of an action, F categories of all parts, L latent.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agent.search.candidates import Candidates, draw_candidates, part_probabilities, part_slices
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
    allowed: NDArray[np.bool_]  # [B, A], or [B, K] which places hold a candidate
    seeds: NDArray[np.uint64]  # [B]
    to_play: NDArray[np.int32]  # [B]
    owed: NDArray[np.int32]  # [B] simulations each row is owed
    simulations: int
    resumed: SearchTrees | None
    candidates: Candidates | None  # of actions with parts

    @property
    def edges(self) -> int:
        """A, or K: the edges of a decision node."""
        return int(self.allowed.shape[1])

    @property
    def parts(self) -> int:
        """D; 0 where an action is one choice."""
        return 0 if self.candidates is None else self.candidates.choices.shape[2]

    @property
    def batch(self) -> int:
        """B."""
        return len(self.allowed)

    @property
    def nodes(self) -> int:
        """Most nodes a tree can come to have."""
        if self.resumed is None:
            return 1 + self.simulations
        return int((np.maximum(self.resumed.arrays.size, 1) + self.owed).max(initial=1))

    @property
    def visits(self) -> int:
        """Most visits a node can come to have."""
        if self.resumed is None:
            return 1 + self.simulations
        return int((np.maximum(self.resumed.arrays.visits[:, 0], 1) + self.owed).max(initial=1))


def _expect_shape(name: str, array: NDArray[np.generic], shape: tuple[int, ...], letters: str) -> None:
    if array.shape != shape:
        raise SearchInputError(f"{name} must have shape {letters} = {shape}; found {array.shape}")


def _floats(name: str, values: ArrayLike, shape: tuple[int, ...], letters: str) -> NDArray[np.float32]:
    array = np.array(values, dtype=np.float32, order="C")
    _expect_shape(name, array, shape, letters)
    require_finite(name, array)
    return array


def _allowed(action_mask: ArrayLike | None, batch: int, actions: int) -> NDArray[np.bool_]:
    if action_mask is None:
        return np.ones((batch, actions), np.bool_)
    allowed = np.array(action_mask, dtype=np.bool_, order="C")
    _expect_shape("action_mask", allowed, (batch, actions), "[B, A]")
    if not allowed.any(axis=1).all():
        row = int(np.flatnonzero(~allowed.any(axis=1))[0])
        raise SearchInputError(f"action_mask allows no action in row {row}; every row needs at least one")
    return allowed


def _seeds(seeds: ArrayLike | None, batch: int, *, sampled: bool, noisy: bool) -> NDArray[np.uint64]:
    if seeds is not None:
        rows = np.array(seeds, dtype=np.uint64)
        _expect_shape("seeds", rows, (batch,), "[B]")
        return rows
    if sampled or noisy:
        reason = "chance outcomes are sampled" if sampled else "exploration noise is asked for"
        raise SearchInputError(f"seeds are needed because {reason}; pass one uint64 per row, found none")
    return np.zeros(batch, np.uint64)


def _given_noise(config: SearchConfig, root_noise: ArrayLike, allowed: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Noise from outside; as a share of the prior (puct) it must be a distribution over the allowed actions."""
    noise = np.array(root_noise, dtype=np.float64, order="C")
    _expect_shape("root_noise", noise, allowed.shape, "[B, A]")
    require_finite("root_noise", noise)
    if config.root == "gumbel":
        return noise
    shares = np.where(allowed, noise, 0.0)
    total = shares.sum(axis=1, keepdims=True)
    if (shares < 0.0).any() or (total <= 0.0).any():
        raise SearchInputError(
            f"root_noise of a puct root must be shares of the allowed actions: not negative, not all 0; found {noise}"
        )
    shares /= total
    return shares


def _turns(
    config: SearchConfig, to_play: ArrayLike | None, resume: SearchTrees | None, batch: int
) -> NDArray[np.int32]:
    if to_play is None:
        return np.zeros(batch, np.int32) if resume is None else resume.arrays.to_play.copy()
    turns = np.array(to_play, dtype=np.int32)
    _expect_shape("to_play", turns, (batch,), "[B]")
    if batch and (turns.min() < 0 or turns.max() >= config.players):
        raise SearchInputError(f"to_play must hold players in [0, {config.players}); found {turns}")
    if resume is not None and (turns != resume.arrays.to_play).any():
        raise SearchInputError(f"to_play must agree with the trees to resume, {resume.arrays.to_play}; found {turns}")
    return turns


def _check_resume(
    config: SearchConfig, model: CoreWeights | TableModel, resume: SearchTrees | None, batch: int
) -> None:
    if resume is None:
        return
    if model.action_factors:
        raise SearchInputError(
            "a tree over sampled candidates cannot be resumed: its root would have to keep candidates that an earlier "
            "search drew; search afresh"
        )
    if config.root == "gumbel":
        raise SearchInputError(
            "a gumbel root halves its actions over one whole budget and cannot resume a tree; use root: puct"
        )
    expected = (batch, model.num_actions, model.num_codes, config.players, model.latent_size)
    found = (len(resume), resume.num_actions, resume.num_codes, resume.num_players, resume.arrays.latent.shape[2])
    if found != expected:
        raise SearchInputError(
            f"resume must match the search in (batch, actions, codes, players, latent) = {expected}; found {found}"
        )


def check_inputs(
    config: SearchConfig,
    model: CoreWeights | TableModel,
    latents: ArrayLike,
    policy_logits: ArrayLike,
    values: ArrayLike,
    *,
    action_mask: ArrayLike | None,
    seeds: ArrayLike | None,
    explore: float,
    simulations: int | None,
    to_play: ArrayLike | None,
    root_noise: ArrayLike | None,
    resume: SearchTrees | None,
) -> SearchInputs:
    """Parse the arguments of a search; raises SearchInputError saying what was expected and what was found."""
    count = config.simulations if simulations is None else simulations
    if count < 0:
        raise SearchInputError(f"simulations must not be negative; found {count}")
    batch, actions = np.size(values), model.num_actions
    checked_latents = _floats("latents", latents, (batch, model.latent_size), "[B, L]")
    logits = _floats("policy_logits", policy_logits, (batch, actions), "[B, A]")
    root_values = _floats("values", values, (batch,), "[B]")
    allowed = _allowed(action_mask, batch, actions)
    factors = model.action_factors
    for number, part in enumerate(part_slices(factors)):
        if not allowed[:, part].any(axis=1).all():
            row = int(np.flatnonzero(~allowed[:, part].any(axis=1))[0])
            raise SearchInputError(
                f"action_mask allows no category of part {number} of the action in row {row}; every part needs one"
            )
    _check_resume(config, model, resume, batch)
    turns = _turns(config, to_play, resume, batch)

    if not 0.0 <= explore <= 1.0:
        raise SearchInputError(f"explore must lie in [0, 1], a share of the configured noise; found {explore}")
    noise_fraction = config.dirichlet_fraction if root_noise is not None else explore * config.dirichlet_fraction
    draws = root_noise is None and (explore > 0.0 if config.root == "gumbel" else noise_fraction > 0.0)
    sampled = config.chance_selection == "sampled" and count > 0
    row_seeds = _seeds(seeds, batch, sampled=sampled, noisy=draws)
    candidates = None
    if factors:
        candidates = draw_candidates(
            part_probabilities(logits, allowed, factors),
            factors,
            count=config.samples,
            seeds=row_seeds,
            even_share=config.samples_even_share if explore else 0.0,
            with_mode=not explore,
        )
        actions, allowed = config.samples, candidates.prior > 0.0
        logits = np.log(np.where(allowed, candidates.prior, 1.0)).astype(np.float32)
    noise = np.zeros((batch, actions), np.float64)
    if root_noise is not None:
        noise = _given_noise(config, root_noise, allowed)
    elif draws and config.root == "gumbel":
        noise = gumbel_noise(row_seeds, actions)
    elif draws:
        noise = dirichlet_noise(row_seeds, allowed, config.dirichlet_alpha)
    mixes = config.root == "puct" and (draws or root_noise is not None)

    owed, held = np.full(batch, count, np.int32), np.zeros(batch, np.bool_)
    if resume is not None:
        held = resume.arrays.size > 0
        # The budget counts visits of the root, so what was inherited is not paid for again.
        inherited = np.where(held, resume.arrays.visits[:, 0] - 1, 0)
        owed = np.maximum(count - inherited, 0).astype(np.int32)
    return SearchInputs(
        roots=RootInputs(
            latents=checked_latents,
            policy_logits=logits,
            values=root_values,
            noise=noise,
            resumed=held,
            noise_fraction=noise_fraction if mixes else 0.0,
            choices=np.zeros((batch, 1, 1), np.int32) if candidates is None else candidates.choices,
        ),
        allowed=allowed,
        seeds=row_seeds,
        to_play=turns,
        owed=owed,
        simulations=count,
        resumed=resume,
        candidates=candidates,
    )
