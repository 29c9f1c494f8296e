"""The learning side of a run: learner, target network, and what of them a resumable checkpoint holds."""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agent.config import AgentConfig
from agent.learner import Decode, Learner
from agent.networks.model import StochasticMuZero
from agent.replay import Batch

Arrays = Mapping[str, NDArray[np.generic]]


def learning_device(name: str) -> torch.device:
    """The device to learn on. Raises ValueError when a GPU is asked for and there is none."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError(
            "learner.device cuda: expected a CUDA GPU that torch can use, found none. Set learner.device to auto or cpu"
        )
    return torch.device("cuda" if available and name != "cpu" else "cpu")


class Fitter:
    """A learner, its target network where there is one, and the means of its diagnostics since they were last taken."""

    def __init__(
        self, model: StochasticMuZero, config: AgentConfig, *, decode: Decode | None, parallel: bool = False
    ) -> None:
        """decode: gathers real observations from stored ones. parallel: average gradients with the other processes of
        the torch.distributed group."""
        self.learner = Learner(
            model,
            config.learner,
            decode=decode or (lambda entries: entries),
            device=learning_device(config.learner.device),
            parallel=parallel,
        )
        self.target = copy.deepcopy(model).requires_grad_(False) if config.learner.target_every else None
        self.sums: dict[str, float] = {}
        self.count = 0

    @property
    def model(self) -> StochasticMuZero:
        """The model that learns."""
        return self.learner.model

    @property
    def copies_target(self) -> bool:
        """Whether the target network has just been given the present weights."""
        return self.target is not None and self.learner.updates % self.learner.config.target_every == 0

    def update(self, batch: Batch) -> NDArray[np.float32]:
        """One update. Returns the value errors [S]."""
        diagnostics, error = self.learner.update(batch, self.target)
        if self.target is not None and self.copies_target:
            self.target.load_state_dict(self.learner.acting.state_dict())
        for name, value in diagnostics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1
        return error

    def take_diagnostics(self) -> dict[str, float]:
        """Means over the updates since the last call."""
        means = {name: total / self.count for name, total in self.sums.items()}
        self.sums, self.count = {}, 0
        return means

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """All but the weights that a resumed run needs."""
        arrays: dict[str, NDArray[np.generic]] = {"torch_rng": torch.get_rng_state().numpy()}
        for index, entry in self.learner.optimiser.state_dict()["state"].items():
            arrays |= {f"optimiser.{index}.{name}": value.detach().cpu().numpy() for name, value in entry.items()}
        if self.learner.averaged is not None:
            averaged = self.learner.averaged.state_dict()
            arrays |= {f"averaged.{name}": value.cpu().numpy() for name, value in averaged.items()}
        if self.target is not None:
            arrays |= {f"target.{name}": value.cpu().numpy() for name, value in self.target.state_dict().items()}
        return arrays

    def bookkeeping(self) -> dict[str, Any]:
        """The same, of what is no array."""
        return {
            "scaler": self.learner.scaler_state(),
            "diagnostic_sums": self.sums,
            "diagnostic_count": self.count,
        }

    def load(self, arrays: Arrays, bookkeeping: Mapping[str, Any], *, updates: int) -> None:
        """Restore what `arrays` and `bookkeeping` gave; the weights are the model's own."""
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, array in under(arrays, "optimiser.").items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = torch.from_numpy(array.copy())
        groups = self.learner.optimiser.state_dict()["param_groups"]
        self.learner.optimiser.load_state_dict({"state": state, "param_groups": groups})
        self.learner.load_scaler_state(bookkeeping["scaler"])
        if self.learner.averaged is not None:
            saved = under(arrays, "averaged.")
            self.learner.averaged.load_state_dict({k: torch.from_numpy(array.copy()) for k, array in saved.items()})
        if self.target is not None:
            saved = under(arrays, "target.")
            self.target.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in saved.items()})
        torch.set_rng_state(torch.from_numpy(arrays["torch_rng"].copy()))
        self.learner.updates = updates
        self.sums, self.count = dict(bookkeeping["diagnostic_sums"]), bookkeeping["diagnostic_count"]


def under(arrays: Arrays, prefix: str) -> dict[str, NDArray[np.generic]]:
    """The entries whose names begin with the prefix, by the rest of their names."""
    return {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}
