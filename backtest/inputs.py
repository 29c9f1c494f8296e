"""What to evaluate and on what: checkpoints, experiments and bars, found from the few words of a command line."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.checkpoint import CheckpointMetadata, CheckpointPolicy, load_policy
from backtest.calibration import CodeOutcomes, code_outcomes
from backtest.lookahead import FeatureTable
from backtest.metrics import Floats
from backtest.study import Model
from configs.experiment import SPLITS, Experiment, Split, load_experiment, parse_experiment
from data.bars import Bars
from market_env.config import MarketConfig
from market_env.market import Market


class InputError(ValueError):
    """What was asked for is not there, or does not fit together."""


@dataclass(frozen=True)
class Prepared:
    """A market ready to be traded, with the closes before it (for slow baselines)."""

    market: Market
    config: MarketConfig
    history_close: Floats
    bars_fingerprint: str


def checkpoint_name(path: Path) -> str:
    """A short name for people: the run's, or the model's."""
    resolved = path.resolve() if path.is_symlink() else path
    parts = path.parts
    if "checkpoints" in parts:
        place = len(parts) - 1 - parts[::-1].index("checkpoints")
        run = parts[place - 1] if place > 0 else path.resolve().parent.parent.name
        return f"{run}/{parts[-1]}" if parts[-1] != "checkpoints" else run
    return resolved.name


def checkpoint_fingerprint(metadata: CheckpointMetadata) -> str:
    """The weights' hash: what was evaluated, wherever the file lies."""
    return metadata.files["weights.safetensors"][:16]


def experiment_of(metadata: CheckpointMetadata, config: Path | None, where: Path) -> Experiment:
    """The experiment to evaluate on: the given YAML, or the one the checkpoint was trained with.

    Raises InputError where the features differ from what the checkpoint has learnt to read.
    """
    if config is not None:
        experiment = load_experiment(config)
    elif metadata.experiment:
        experiment = parse_experiment(metadata.experiment, str(where))
    else:
        raise InputError(f"{where}: the checkpoint names no experiment (it was not trained on bars). Give --config.")
    expected, found = metadata.feature_fingerprint, experiment.feature_set.fingerprint
    if expected is not None and expected != found:
        raise InputError(
            f"{where}: the checkpoint reads features {expected}, the experiment has {found} "
            f"({', '.join(experiment.features)}). Use the configuration it was trained with, or retrain."
        )
    return experiment


def policy_of(path: Path) -> CheckpointPolicy:
    """The policy of a checkpoint."""
    return load_policy(path)


def evaluation_config(
    config: MarketConfig, *, fees_bps: float | None, deterministic: bool, equity: float | None = None
) -> MarketConfig:
    """The market as it is evaluated: no domain randomisation, with the command line's overrides."""
    chosen = config.for_evaluation()
    if fees_bps is not None:
        if not 0.0 <= fees_bps < 1000.0:
            raise InputError(f"--fees-bps {fees_bps}: expected basis points in [0, 1000).")
        costs = chosen.costs.model_copy(update={"taker_fee_bps": fees_bps, "maker_fee_bps": fees_bps})
        chosen = chosen.model_copy(update={"costs": costs})
    if deterministic:
        fills = chosen.fills.model_copy(update={"mode": "deterministic"})
        chosen = chosen.model_copy(update={"fills": fills})
    if equity is not None:
        episode = chosen.episode.model_copy(update={"initial_equity": equity})
        chosen = chosen.model_copy(update={"episode": episode})
    return MarketConfig.model_validate(chosen.model_dump())


def checked_split(split: str) -> Split:
    """A split's name, or an InputError with the names there are."""
    for known in SPLITS:
        if split == known:
            return known
    raise InputError(f"--split {split}: expected one of {', '.join(SPLITS)}.")


def prepare(experiment: Experiment, split: str, symbol: str | None, config: MarketConfig) -> tuple[Prepared, list[str]]:
    """The split's market of one symbol, and notes for the reader where there was a choice."""
    bars = experiment.load_bars()
    markets = experiment.markets(checked_split(split), bars)
    notes = []
    chosen = 0
    names = [market.symbol for market in markets]
    if symbol is not None:
        matching = [index for index, name in enumerate(names) if name.lower() == symbol.lower()]
        if not matching:
            raise InputError(f"--symbol {symbol}: the experiment has {', '.join(names)}.")
        chosen = matching[0]
    elif len(names) > 1:
        notes.append(f"This report is on {names[0]}; --symbol chooses among {', '.join(names)}.")
    return prepared(bars[chosen], markets[chosen], config), notes


def prepared(bars: Bars, market: Market, config: MarketConfig) -> Prepared:
    """A market with the closes up to its last bar."""
    last = int(np.searchsorted(bars.timestamp, market.timestamp[-1])) + 1
    return Prepared(
        market=market,
        config=config,
        history_close=np.asarray(bars.close[:last]),
        bars_fingerprint=bars.fingerprint,
    )


def model_of(policy: CheckpointPolicy, experiment: Experiment) -> Model:
    """What calibration needs to know of a checkpoint's model."""
    meanings = policy.code_statistics
    codes: CodeOutcomes | None = None
    if meanings:
        tables: list[dict[str, float]] = [dict(meaning.quantiles) for meaning in meanings]
        codes = code_outcomes([meaning.code for meaning in meanings], tables, experiment.agent.network.codes)
    return Model(discount=experiment.agent.discount, reward_scale=experiment.market.reward.scale, codes=codes)


def features_of_file(text: str) -> FeatureTable:
    """A user's features from FILE.py:NAME: an object with `names`, `warmup` and `compute(bars) -> [N, F]`.

    Runs the file: give only files you would run yourself.
    """
    file, separator, name = text.rpartition(":")
    path = Path(file)
    if not separator or path.suffix != ".py" or not path.is_file():
        raise InputError(f"--features {text}: expected an existing FILE.py and a NAME in it, such as mine.py:FEATURES.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InputError(f"--features {text}: {path} cannot be read as Python.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: FeatureTable | None = getattr(module, name, None)
    missing = [part for part in ("names", "warmup", "compute") if not hasattr(found, part)]
    if found is None or missing:
        raise InputError(
            f"--features {text}: expected an object with names, warmup and compute(bars), found "
            f"{'nothing of that name' if found is None else 'no ' + ', '.join(missing)}."
        )
    return found
