"""The market as the agent's training meets it: environments per split, and what its chance codes turn out to mean."""

import hashlib
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from agent.checkpoint import CodeMeaning
from agent.networks.model import StochasticMuZero
from agent.policy import Observations
from configs.experiment import Experiment, Split
from market_env.market import Market
from market_env.vector import MarketVectorEnv

_MEANING_ENVS = 64
_MEANING_STEPS = 128  # 8,192 transitions: about 250 for each of 32 codes
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class MarketEnvs:
    """An `agent.train.EnvFactory` over an experiment's markets."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self._bars = experiment.load_bars()
        self._markets: dict[Split, list[Market]] = {}

    def markets(self, split: Split) -> list[Market]:
        """The prepared markets of a split, one per symbol; prepared once."""
        if split not in self._markets:
            self._markets[split] = self.experiment.markets(split, self._bars)
        return self._markets[split]

    def train(self, num_envs: int, seed: int) -> MarketVectorEnv:
        """Random stretches of the training split. Observations are indices: the replay gathers the windows."""
        return MarketVectorEnv(
            self.markets("train"), self.experiment.market, num_envs=num_envs, seed=seed, obs_mode="index"
        )

    def validation(self, num_envs: int, seed: int) -> MarketVectorEnv:
        """The whole validation split, once per env, each with fills of its own."""
        return self.evaluation("validation", num_envs, seed)

    def evaluation(self, split: Split, num_envs: int, seed: int) -> MarketVectorEnv:
        """The whole of any split, once per env, each with fills of its own."""
        return MarketVectorEnv(
            self.markets(split),
            self.experiment.market.for_evaluation(),
            num_envs=num_envs,
            seed=seed,
            obs_mode="index",
        )

    @cached_property
    def data_fingerprint(self) -> str:
        """Of the bars trained on, all symbols."""
        digest = hashlib.sha256()
        for market in self.markets("train"):
            digest.update(market.fingerprint.encode())
        return digest.hexdigest()[:16]

    def code_statistics(self, model: StochasticMuZero) -> list[CodeMeaning]:
        """What each chance code means: next-bar log returns of the transitions the encoder gives it to.

        Transitions come from random actions on the training split, so that every position is among them.
        """
        env = self.train(_MEANING_ENVS, self.experiment.seed)
        closes = [np.log(market.close) for market in self.markets("train")]
        rng = np.random.default_rng(self.experiment.seed)
        observation, infos = env.reset(seed=self.experiment.seed)
        codes: list[NDArray[np.int64]] = []
        returns: list[NDArray[np.float64]] = []
        finished = np.zeros(_MEANING_ENVS, dtype=bool)
        for _ in range(_MEANING_STEPS):
            mask = np.asarray(infos["action_mask"], dtype=bool)
            action = (rng.random(mask.shape) * mask).argmax(axis=1)
            successor, _, terminated, truncated, infos = env.step(action)
            real = ~finished  # a finished env has just been reset: its two observations are not a transition
            codes.append(_encode(model, env.decode(observation), env.decode(successor))[real])
            dataset, t = (np.asarray(successor[name])[real].ravel() for name in ("dataset", "t"))
            returns.append(np.array([closes[d][i] - closes[d][i - 1] for d, i in zip(dataset, t, strict=True)]))
            finished = np.asarray(terminated | truncated, dtype=bool)
            observation = successor
        return summarise_codes(np.concatenate(codes), np.concatenate(returns))


def summarise_codes(codes: NDArray[np.int64], outcomes: NDArray[np.float64]) -> list[CodeMeaning]:
    """Mean and quantiles of the outcomes [M] each code [M] was given for. Codes never given are left out."""
    meanings = []
    for code in np.unique(codes):
        own = outcomes[codes == code]
        quantiles = {str(q): float(np.quantile(own, q)) for q in _QUANTILES}
        meanings.append(CodeMeaning(code=int(code), count=len(own), mean=float(own.mean()), quantiles=quantiles))
    return meanings


def _encode(model: StochasticMuZero, observations: Observations, successors: Observations) -> NDArray[np.int64]:
    def tensors(entries: Observations) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(np.asarray(entry, np.float32)) for name, entry in entries.items()}

    with torch.inference_mode():
        codes: NDArray[np.int64] = model.encode(tensors(observations), tensors(successors)).soft.argmax(-1).numpy()
    return codes
