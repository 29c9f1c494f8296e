"""Fits the model to batches from the replay."""

import copy
import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from agent.config import LearnerConfig
from agent.losses import LossTerms, Predictions, TrainingBatch, unroll_losses
from agent.networks.model import StochasticMuZero
from agent.policy import Observations
from agent.replay import Batch

Decode = Callable[[Observations], Observations]


class NonFiniteLoss(RuntimeError):
    """A loss or gradient is NaN or infinite; training on would only spread it."""


def learning_rate(update: int, config: LearnerConfig) -> float:
    """Linear warm-up, then cosine from the peak to the final rate (Loshchilov & Hutter 2017)."""
    if update < config.warmup_updates:
        return config.learning_rate * (update + 1) / config.warmup_updates
    progress = min(1.0, (update - config.warmup_updates) / config.decay_updates)
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.learning_rate_final + (config.learning_rate - config.learning_rate_final) * cosine


def as_tensors(batch: Batch, decode: Decode, device: torch.device) -> TrainingBatch:
    """Gather the real observations and move the batch to the device."""
    sequences, states = batch.value.shape
    flat = {name: entry.reshape(-1, *entry.shape[2:]) for name, entry in batch.observations.items()}
    observations = {
        name: torch.from_numpy(np.asarray(entry, np.float32)).to(device).reshape(sequences, states, *entry.shape[1:])
        for name, entry in decode(flat).items()
    }

    def tensor(array: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    return TrainingBatch(
        observations=observations,
        action=tensor(batch.action),
        reward=tensor(batch.reward),
        policy=tensor(batch.policy),
        value=tensor(batch.value),
        q=tensor(batch.q),
        state_mask=tensor(batch.state_mask),
        step_mask=tensor(batch.step_mask),
        weight=tensor(batch.weight),
    )


class UnrolledLosses(nn.Module):
    """The losses as a module's forward pass, which is where DistributedDataParallel looks."""

    def __init__(self, model: StochasticMuZero, *, consistency: bool) -> None:
        super().__init__()
        self.model = model
        self._consistency = consistency

    def forward(self, batch: TrainingBatch, target: StochasticMuZero | None) -> tuple[LossTerms, Predictions]:
        """agent.losses.unroll_losses of the model."""
        return unroll_losses(self.model, batch, target=target, consistency=self._consistency)


class Learner:
    """AdamW on the losses of agent/losses.py."""

    def __init__(
        self,
        model: StochasticMuZero,
        config: LearnerConfig,
        *,
        decode: Decode,
        device: torch.device,
        parallel: bool = False,
    ) -> None:
        """parallel: average gradients with the other processes of the torch.distributed group, which start from the
        weights of the first; each then learns from its own part of a batch."""
        self.model = model.to(device)
        self.config = config
        self.device = device
        self.updates = 0
        # The mean of many noisy iterates is closer to what they circle around than the last one is.
        self.averaged = copy.deepcopy(self.model).requires_grad_(False) if config.average else None
        self._decode = decode
        losses: nn.Module = UnrolledLosses(self.model, consistency=config.consistency_weight > 0)
        if parallel:
            losses = DistributedDataParallel(losses)
        self._losses: Callable[..., tuple[LossTerms, Predictions]] = torch.compile(losses) if config.compile else losses
        self._autocast = None if config.precision == "float32" else getattr(torch, config.precision)
        # float16 underflows: the loss is scaled up and the gradient down again (Micikevicius et al. 2018).
        self._scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "float16")
        # Biases and gains are not decayed: pulling them to zero is a prior nobody has.
        decayed = [p for p in model.parameters() if p.ndim >= 2]
        kept = [p for p in model.parameters() if p.ndim < 2]
        self.optimiser = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": config.weight_decay},
                {"params": kept, "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            fused=True,
        )

    def update(
        self, batch: Batch, target: StochasticMuZero | None = None
    ) -> tuple[dict[str, float], NDArray[np.float32]]:
        """One step. Returns diagnostics by name and value errors [S] for the priorities.

        target: the target network, where there is one.

        Raises NonFiniteLoss, leaving the weights as they were.
        """
        training = as_tensors(batch, self._decode, self.device)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.updates, self.config)
        with torch.autocast(self.device.type, self._autocast, enabled=self._autocast is not None):
            terms, predictions = self._losses(training, target)
            loss = terms.total(self.config)
        self.optimiser.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.unscale_(self.optimiser)
        if self.updates < self.config.encoder_delay:
            for parameter in self.model.encoder.parameters():
                parameter.grad = None
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        # A float16 gradient that overflows is skipped by the scaler, which then scales less.
        if not bool(torch.isfinite(loss)) or not (self._scaler.is_enabled() or bool(torch.isfinite(norm))):
            shown = ", ".join(f"{name} {value.item():.4g}" for name, value in terms.items().items())
            raise NonFiniteLoss(
                f"update {self.updates}: expected a finite loss and gradient, found loss {loss.item():.4g}, "
                f"gradient norm {norm.item():.4g} ({shown}). Lower learner.learning_rate, or look for "
                f"non-finite observations or rewards"
            )
        self._scaler.step(self.optimiser)
        self._scaler.update()
        self.updates += 1
        self._average()
        usage = predictions.code_usage
        perplexity = torch.exp(-(usage * usage.clamp(min=1e-12).log()).sum())
        diagnostics = {f"loss/{name}": value.item() for name, value in terms.items().items()}
        diagnostics |= {
            "loss/total": loss.item(),
            "learner/gradient_norm": norm.item(),
            "learner/learning_rate": self.optimiser.param_groups[0]["lr"],
            "model/code_perplexity": perplexity.item(),
            # Of the outcomes expected after one action, where the other is of the codes used over all actions.
            "model/chance_perplexity": math.exp(predictions.chance_entropy.item()),
            "model/policy_entropy": predictions.policy_entropy.item(),
            "replay/age_steps": float(batch.age.mean()),
        }
        error = (predictions.value - training.value[:, 0]).abs().cpu().numpy()
        return diagnostics, error.astype(np.float32)

    @property
    def acting(self) -> StochasticMuZero:
        """The model to act with: the running mean, where there is one."""
        return self.model if self.averaged is None else self.averaged

    def _average(self) -> None:
        if self.averaged is None:
            return
        # A plain mean at first, so that the untrained weights are forgotten at once.
        decay = min(self.config.average, (self.updates - 1) / self.updates)
        means: list[torch.Tensor] = list(self.averaged.parameters())
        weights: list[torch.Tensor] = list(self.model.parameters())
        with torch.no_grad():
            torch._foreach_lerp_(means, weights, 1.0 - decay)

    def scaler_state(self) -> dict[str, float]:
        """What the loss scaler has found out; empty without one."""
        state: dict[str, float] = self._scaler.state_dict()
        return state

    def load_scaler_state(self, state: dict[str, float]) -> None:
        """Restore `scaler_state`."""
        if state:
            self._scaler.load_state_dict(state)
