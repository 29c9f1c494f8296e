"""One experiment, completely: the packages' own configurations composed, and what spans them checked.

A YAML file is one experiment. `--set agent.search.simulations=50` overrides a value. The resolved experiment is
saved with the run and inside every checkpoint, so both say by themselves what they are.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from agent.config import AgentConfig
from data.bars import Bars
from data.features import DEFAULT_FEATURES, FeatureSet
from data.samples import load_sample
from data.store import BarStore, default_root
from market_env.config import MarketConfig
from market_env.guards import GuardConfig
from market_env.instrument import Instrument
from market_env.market import Market

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


class ExperimentError(ValueError):
    """An experiment cannot be read, or its parts do not fit each other or the data."""


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(_Config):
    """Which bars."""

    source: Literal["sample", "store"] = Field(
        description='"sample": real daily bars that need no exchange; "store": fetched or imported ones'
    )
    symbols: tuple[str, ...] = Field(min_length=1, description="sample names, or symbols in the store")
    timeframe: str = Field("1d", description="bar length, such as 1h; samples are daily")
    venue: str | None = Field(None, description="venue in the store; null takes the only one there is")


class SplitsConfig(_Config):
    """Chronological parts, each [first day, day after the last), ISO dates in UTC."""

    train: tuple[str, str]
    validation: tuple[str, str]
    test: tuple[str, str]

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        last = None
        for name in SPLITS:
            start, end = (_date(day, f"splits.{name}") for day in getattr(self, name))
            if start >= end:
                raise ValueError(f"splits.{name}: starts {start:%F}, which is not before its end {end:%F}")
            if last is not None and start < last:
                raise ValueError(f"splits.{name}: starts {start:%F}, before the previous split ends ({last:%F})")
            last = end
        return self


class BacktestConfig(_Config):
    """Defaults of `python -m backtest run` for this experiment."""

    fill_seeds: int = Field(20, ge=1, description="independent paths of the random fills")


class Experiment(_Config):
    """Everything a run depends on."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$", description="of the experiment; runs are stored under it")
    description: str = Field("", description="one line for people")
    seed: int = Field(1, ge=0, description="of everything random in training")
    data: DataConfig
    splits: SplitsConfig
    features: tuple[str, ...] = Field(DEFAULT_FEATURES, min_length=1, description="see python -m data features")
    market: MarketConfig = MarketConfig()
    agent: AgentConfig = AgentConfig()
    backtest: BacktestConfig = BacktestConfig()
    guards: GuardConfig = Field(
        GuardConfig(), description="limits of the paper trader, and of a backtest with --guards; training knows none"
    )

    @property
    def feature_set(self) -> FeatureSet:
        """The features of the observation, ready to compute."""
        return FeatureSet.build(self.features)

    def load_bars(self) -> list[Bars]:
        """All bars of every symbol. Raises ExperimentError saying how to get what is missing."""
        if self.data.source == "sample":
            return [load_sample(symbol) for symbol in self.data.symbols]
        store = BarStore(default_root())
        return [store.load(symbol, self.data.timeframe, self.data.venue) for symbol in self.data.symbols]

    def markets(self, split: Split, bars: Sequence[Bars] | None = None) -> list[Market]:
        """One prepared market per symbol, confined to a split. Bars before it serve as warm-up only.

        Raises ExperimentError when a split holds too few bars to make a decision.
        """
        start, end = getattr(self.splits, split)
        markets = []
        for one in self.load_bars() if bars is None else bars:
            try:
                market = Market.prepare(
                    one,
                    self.feature_set,
                    Instrument.for_symbol(one.symbol),
                    start=start,
                    stop=end,
                    window=self.market.observation.window,
                )
            except ValueError as error:
                raise ExperimentError(f"{one.symbol}, split {split} [{start}, {end}): {error}") from error
            markets.append(market)
        return markets

    def dump(self) -> dict[str, Any]:
        """As plain JSON types. Guards that are the default are left out: an experiment from before there were any keeps
        its fingerprint."""
        content = self.model_dump(mode="json")
        if self.guards == GuardConfig():
            del content["guards"]
        return content

    def to_yaml(self) -> str:
        """As the YAML that reads back as this experiment."""
        return yaml.safe_dump(self.dump(), sort_keys=False, allow_unicode=True)


def load_experiment(path: Path | str, overrides: Iterable[str] = ()) -> Experiment:
    """Read a YAML file and apply overrides such as "agent.search.simulations=50".

    Raises ExperimentError naming the file and every field that is wrong.
    """
    return parse_experiment(read_yaml(path, overrides), str(path))


def read_yaml(path: Path | str, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The sections of an experiment's YAML, with overrides applied. Raises ExperimentError naming the file."""
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        known = ", ".join(sorted(str(p) for p in Path("configs").glob("*.yaml"))) or "none here"
        raise ExperimentError(f"{path}: no such file. Experiments: {known}") from error
    except yaml.YAMLError as error:
        raise ExperimentError(f"{path}: not readable as YAML ({error})") from error
    if not isinstance(raw, dict):
        raise ExperimentError(f"{path}: expected a mapping of sections, found {type(raw).__name__}")
    for override in overrides:
        apply_override(raw, override)
    return raw


def parse_experiment(raw: dict[str, Any], where: str) -> Experiment:
    """An experiment from plain types. Raises ExperimentError naming every field that is wrong."""
    if "env" in raw:
        raise ExperimentError(
            f"{where}: is about the environment {raw['env']}, and this needs an experiment on bars. "
            f"python -m agent train, evaluate and inspect know both"
        )
    return validated(Experiment, raw, where)


Model = TypeVar("Model", bound=BaseModel)


def validated(schema: type[Model], raw: dict[str, Any], where: str) -> Model:
    """Plain types as a schema. Raises ExperimentError naming every field that is wrong."""
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            name = ".".join(str(part) for part in problem["loc"])
            found = "" if problem["type"] == "missing" else f" (found {problem['input']!r})"
            lines.append(f"{name or 'experiment'}: {problem['msg']}{found}")
        raise ExperimentError(f"{where}: " + "; ".join(lines)) from error


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set one dotted key; the value is read as YAML. Unknown keys are caught when the experiment is parsed."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ExperimentError(f'--set {override}: expected KEY=VALUE, such as "agent.search.simulations=50"')
    *sections, last = key.split(".")
    place = raw
    for section in sections:
        inner = place.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ExperimentError(f"--set {override}: {section} is a value, not a section")
        place = inner
    try:
        place[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ExperimentError(f"--set {override}: {text!r} is not readable as YAML") from error


def _date(text: str, where: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{where}: {text!r} is not an ISO date") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
