"""A checkpoint made ready to be asked: bars in, decision out, by the same code that trained it.

Features come from `data.features`, the window from `market_env.observation`, the account from the market's kernel, the
plan from `agent`. Nothing is computed here a second way; this module checks, assembles and names.

Legend: T window, F features, A actions, C chance codes.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agent.checkpoint import WEIGHTS, CheckpointError, CheckpointMetadata, CodeMeaning, load_policy
from agent.policy import Decision, Policy
from configs.experiment import Experiment, ExperimentError, parse_experiment
from data.bars import VALUE_COLUMNS, Bars
from data.features import FeatureSet, ewma_volatility
from data.quality import DataQualityError, format_time
from data.timeframe import Timeframe
from market_env.actions import ActionGrid
from market_env.instrument import Instrument
from market_env.observation import ObservationBuilder
from market_env.snapshot import AccountObserver, AccountSnapshot
from service import bar_table
from service.bar_table import BarTable
from service.errors import InvalidModelOutput, InvalidRequest
from service.schemas import LARGEST_AMOUNT, SMALLEST_PRICE, AccountState, ActRequest, CodeStatistics, ModelDescription

REQUEST_VENUE = "request"
STALE_AFTER_BARS = 2


class ModelError(RuntimeError):
    """A checkpoint cannot be served, or cannot take the place of the one that is."""


@dataclass(frozen=True, eq=False)
class Question:
    """A request as the model sees it. window: [T, F] float32. account: [8] float32. simulations: None for its own."""

    window: NDArray[np.float32]
    account: NDArray[np.float32]
    simulations: int | None


@dataclass(frozen=True, eq=False)
class Sent:
    """A request whose features are still to be computed, which is cheaper for many at once. account: [8] float32."""

    bars: Bars
    account: NDArray[np.float32]
    simulations: int | None


@dataclass(frozen=True, eq=False)
class Answer:
    """One row of a `Decision`, checked to be finite. Lists are over actions [A]; chance: [C] after the chosen one."""

    action: int
    policy: list[float]
    prior: list[float]
    value: float
    q_values: list[float]
    visits: list[int]
    simulations: int
    depth: int
    chance: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A policy with everything needed to ask it and to explain its answer."""

    name: str
    sha256: str
    source: Path
    metadata: CheckpointMetadata
    experiment: Experiment
    policy: Policy
    features: FeatureSet
    grid: ActionGrid
    observation: ObservationBuilder
    account: AccountObserver
    meanings: Mapping[int, CodeMeaning]
    loaded_at: datetime
    golden: Answer = field(repr=False)

    # Cached: asked for with every request, and nothing of them changes.

    @cached_property
    def label(self) -> str:
        """Name and hash, as every answer carries them."""
        return f"{self.name}@{self.sha256[:12]}"

    @cached_property
    def timeframe(self) -> Timeframe:
        return Timeframe.parse(self.experiment.data.timeframe)

    @property
    def window(self) -> int:
        """T, bars of features in an observation."""
        return self.experiment.market.observation.window

    @cached_property
    def required_bars(self) -> int:
        """Bars that make exactly one observation: the first feature row of the window needs its warm-up before it."""
        return self.window + self.features.warmup - 1

    @property
    def max_leverage(self) -> float:
        return self.experiment.market.actions.max_leverage

    @cached_property
    def target_positions(self) -> list[float]:
        """[A] what each action asks for, in the unit of a request's position."""
        return list(self.experiment.market.actions.levels)

    def bars(self, request: ActRequest, now_ms: int, table: BarTable | None = None) -> Bars:
        """The request's bars, if they are what this model needs. Raises InvalidRequest.

        table: the bars where they have been read already, for a request without.
        """
        try:
            timeframe = Timeframe.parse(request.timeframe)
        except ValueError as error:
            raise InvalidRequest(f"timeframe: {error}") from None
        if timeframe != self.timeframe:
            raise InvalidRequest(
                f"timeframe: expected {self.timeframe}, which {self.label} was trained on, found {timeframe}. Send "
                f"bars of {self.timeframe} or serve another model"
            )
        if table is None:
            table = BarTable.from_rows(request.bars)
        if len(table.timestamp) != self.required_bars:
            raise InvalidRequest(
                f"bars: expected exactly {self.required_bars} (window {self.window} + feature warm-up "
                f"{self.features.warmup} - 1), found {len(table.timestamp)}. Send the last {self.required_bars} closed "
                f"bars"
            )
        columns = dict(zip(VALUE_COLUMNS, table.values, strict=True))
        try:
            bars = Bars(request.symbol, timeframe, REQUEST_VENUE, table.timestamp, **columns)
        except DataQualityError as error:
            raise InvalidRequest(f"bars: {error}") from None
        if table.values.max() > LARGEST_AMOUNT or bars.low.min() < SMALLEST_PRICE:
            raise InvalidRequest(
                f"bars: expected prices of at least {SMALLEST_PRICE:g} and amounts of at most {LARGEST_AMOUNT:g}, "
                f"found {bars.low.min():g} and {table.values.max():g}. Express them in another unit: only ratios count"
            )
        closed_at = timeframe.close_of(int(bars.timestamp[-1]))
        if closed_at > now_ms:
            raise InvalidRequest(
                f"bars: the last one opens at {format_time(int(bars.timestamp[-1]))} and closes at "
                f"{format_time(closed_at)}, after the server's present {format_time(now_ms)}. Send closed bars only; "
                f"if it is closed by your clock, compare the clocks"
            )
        return bars

    def is_stale(self, bars: Bars, now_ms: int) -> bool:
        """Whether the last bar closed more than two bars ago."""
        closed_at = bars.timeframe.close_of(int(bars.timestamp[-1]))
        return now_ms - closed_at > STALE_AFTER_BARS * bars.timeframe.milliseconds

    def sent(self, request: ActRequest, bars: Bars) -> Sent:
        """What a request asks, but for its features. Raises InvalidRequest for an account that cannot be."""
        return Sent(bars, self.account.observe(self._snapshot(request, bars)), request.simulations)

    def question(self, request: ActRequest, bars: Bars) -> Question:
        """The observation of a request: the one that training would have made of the same bars and account.

        Raises InvalidRequest for an account that cannot be.
        """
        return self.questions([self.sent(request, bars)])[0]

    def questions(self, requests: Sequence[Sent]) -> list[Question]:
        """The observations of several requests, their features computed together."""
        windows = self.features.last_rows([request.bars for request in requests], self.window)
        return [
            Question(window, request.account, request.simulations)
            for window, request in zip(windows, requests, strict=True)
        ]

    def _snapshot(self, request: ActRequest, bars: Bars) -> AccountSnapshot:
        if request.position < 0.0 and self.experiment.market.actions.spot:
            raise InvalidRequest(
                f"position: expected 0 to 1, because {self.label} trades without short selling, found "
                f"{request.position:g}"
            )
        account = request.account or AccountState()
        initial = account.initial_equity or account.equity or self.experiment.market.episode.initial_equity
        equity = account.equity or initial
        target = request.position if account.last_target is None else account.last_target
        entry_volatility = account.entry_volatility
        if entry_volatility is None and request.position != 0.0:
            entry_volatility = float(ewma_volatility(bars.close)[-1])
        try:
            return AccountSnapshot(
                exposure=request.position * self.max_leverage,
                price=float(bars.close[-1]),
                equity=equity,
                initial_equity=initial,
                peak_equity=account.peak_equity or max(initial, equity),
                entry_price=account.entry_price,
                entry_volatility=entry_volatility,
                bars_held=account.bars_held,
                last_target=target * self.max_leverage,
                last_fill_fraction=account.last_fill_fraction,
            )
        except ValueError as error:
            raise InvalidRequest(f"account: {error}") from None

    def answer(self, requests: Sequence[Sent]) -> list[Answer | Exception]:
        """Compute the features and decide; a request that fails gets its exception and spoils no other."""
        try:
            return self.decide(self.questions(requests))
        except Exception as error:  # noqa: BLE001  whatever a feature raises belongs to the bars that caused it
            if len(requests) == 1:
                return [error]
            return [answer for request in requests for answer in self.answer([request])]

    def decide(self, questions: Sequence[Question]) -> list[Answer | Exception]:
        """Answer each question; one that fails gets its exception and spoils no other."""
        answers: list[Answer | Exception] = [InvalidModelOutput("not asked")] * len(questions)
        for simulations in {question.simulations for question in questions}:
            rows = [row for row, question in enumerate(questions) if question.simulations == simulations]
            for row, answer in zip(rows, self._decide_alike([questions[row] for row in rows]), strict=True):
                answers[row] = answer
        return answers

    def _decide_alike(self, questions: Sequence[Question]) -> list[Answer | Exception]:
        """Answer questions of one search budget."""
        try:
            decision = ask(self.policy, self.grid, questions)
        except Exception as error:  # noqa: BLE001  whatever the search raises belongs to the one who caused it
            if len(questions) == 1:
                return [error]
            return [answer for question in questions for answer in self._decide_alike([question])]
        return _answers(decision)

    def describe(self) -> ModelDescription:
        """For GET /v1/model."""
        metadata, experiment = self.metadata, self.experiment
        return ModelDescription(
            model=self.label,
            sha256=self.sha256,
            code_version=metadata.code_version,
            experiment=experiment.name,
            description=experiment.description,
            symbols=list(experiment.data.symbols),
            timeframe=str(self.timeframe),
            required_bars=self.required_bars,
            window=self.window,
            feature_warmup=self.features.warmup,
            features=list(self.features.names),
            feature_fingerprint=self.features.fingerprint,
            target_positions=self.target_positions,
            allowed=self.grid.mask.tolist(),
            simulations=metadata.agent.search.simulations,
            env_steps=metadata.counters.env_steps,
            updates=metadata.counters.updates,
            validation_return=metadata.score,
            codes=[
                CodeStatistics(code=code.code, count=code.count, mean_return=code.mean, quantiles=code.quantiles)
                for code in self.meanings.values()
            ],
            loaded_at=self.loaded_at.isoformat(timespec="seconds"),
            golden_action=self.golden.action,
            golden_value=self.golden.value,
        )


def ask(policy: Policy, grid: ActionGrid, questions: Sequence[Question]) -> Decision:
    """One call of the policy for questions of one search budget."""
    return policy.act(
        {
            "window": np.stack([question.window for question in questions]),
            "account": np.stack([question.account for question in questions]),
        },
        action_mask=np.tile(grid.mask, (len(questions), 1)),
        simulations=questions[0].simulations,
    )


def _answers(decision: Decision) -> list[Answer | Exception]:
    """The rows of a decision, or why nobody should trade on one."""
    rows = len(decision.action)
    numbers = (decision.policy, decision.value, decision.q_values, decision.chance_probabilities)
    finite = np.all([np.isfinite(part).reshape(rows, -1).all(axis=1) for part in numbers], axis=0)
    chosen = decision.chance_probabilities[np.arange(rows), decision.action]
    columns = (decision.action, decision.policy, decision.prior, decision.value, decision.q_values, decision.visits)
    lists = zip(*(column.tolist() for column in (*columns, decision.depth, finite)), chosen, strict=True)
    return [
        Answer(
            action=action,
            policy=policy,
            prior=prior,
            value=value,
            q_values=q_values,
            visits=visits,
            simulations=decision.simulations,
            depth=depth,
            chance=chance,
        )
        if sound
        else InvalidModelOutput("the model's output is not finite; reload a sound checkpoint before trading on it")
        for action, policy, prior, value, q_values, visits, depth, sound, chance in lists
    ]


# --- loading ---------------------------------------------------------------------------------------------------------


def load_model(source: Path) -> ServedModel:
    """A checkpoint, loaded, checked against this version of the code and warmed up. Raises ModelError."""
    path = source.resolve()  # `best` may be pointed elsewhere while it is read
    name = f"{path.parent.parent.name}/{path.name}" if path.parent.name == "checkpoints" else path.name
    try:
        policy = load_policy(path)
        experiment = _experiment(policy.metadata, name)
    except (CheckpointError, ExperimentError) as error:
        raise ModelError(str(error)) from error
    metadata = policy.metadata
    features = experiment.feature_set
    if metadata.feature_fingerprint != features.fingerprint:
        raise ModelError(
            f"checkpoint {name} expects features {metadata.feature_fingerprint} "
            f"({len(experiment.features)} columns), this version computes {features.fingerprint} for the same names: a "
            f"definition has changed. Serve it with smu0 {metadata.code_version}, or retrain"
        )
    grid = ActionGrid.build(experiment.market.actions)
    observation = ObservationBuilder(experiment.market.observation.window)
    account = AccountObserver(experiment.market, Instrument.for_symbol(experiment.data.symbols[0]))
    expected = {name: box.shape for name, box in observation.space(len(features.names)).items()}
    if metadata.observation_shapes != expected or metadata.actions != len(grid):
        raise ModelError(
            f"checkpoint {name} was trained on observations {metadata.observation_shapes} and {metadata.actions} "
            f"actions; its experiment makes {expected} and {len(grid)}. It is not a checkpoint of that experiment: "
            f"retrain, or restore the file that belongs to it"
        )
    golden = _warm_up(policy, grid, features, observation, account, name)
    return ServedModel(
        name=name,
        sha256=metadata.files[WEIGHTS],
        source=source,
        metadata=metadata,
        experiment=experiment,
        policy=policy,
        features=features,
        grid=grid,
        observation=observation,
        account=account,
        meanings={code.code: code for code in metadata.code_statistics},
        loaded_at=datetime.now(UTC),
        golden=golden,
    )


def _experiment(metadata: CheckpointMetadata, name: str) -> Experiment:
    if not metadata.experiment:
        raise ModelError(
            f"checkpoint {name} carries no experiment, so it was not trained on a market. Serve one made by "
            f'"python -m agent train CONFIG"'
        )
    return parse_experiment(metadata.experiment, f"checkpoint {name}")


def golden_bars(timeframe: Timeframe, count: int) -> Bars:
    """Made-up bars, always the same: two slow waves with a little of everything a feature looks at."""
    t = np.arange(count)
    close = 100.0 * np.exp(0.02 * np.sin(t / 9.0) + 0.01 * np.sin(t / 2.3))
    open_ = np.concatenate(([100.0], close[:-1])) * (1.0 + 0.001 * np.cos(t))
    return Bars(
        symbol="GOLDEN",
        timeframe=timeframe,
        venue=REQUEST_VENUE,
        timestamp=timeframe.ceil(946_684_800_000) + t * timeframe.milliseconds,  # from 2000-01-01
        open=open_,
        high=np.maximum(open_, close) * 1.002,
        low=np.minimum(open_, close) * 0.998,
        close=close,
        volume=1000.0 + 500.0 * np.cos(t / 5.0),
    )


def _warm_up(
    policy: Policy,
    grid: ActionGrid,
    features: FeatureSet,
    observation: ObservationBuilder,
    account: AccountObserver,
    name: str,
) -> Answer:
    """Decide on golden bars, so that the first caller does not wait for compilation, and look at the result.

    Raises ModelError when it is not finite, not allowed, or not the same twice.
    """
    bar_table.warm_up()
    # The features are those of any timeframe; an hour exercises the time of week.
    bars = golden_bars(Timeframe.parse("1h"), observation.length + features.warmup - 1)
    table = features.compute(bars)
    question = Question(
        window=observation.window(table, len(table) - 1),
        account=account.observe(AccountSnapshot(exposure=0.0, price=float(bars.close[-1]))),
        simulations=None,
    )
    try:
        decisions = [ask(policy, grid, [question]) for _ in range(2)]
    except Exception as error:
        raise ModelError(f"checkpoint {name} fails on the golden input: {error}") from error
    first, second = (_answers(decision)[0] for decision in decisions)
    if isinstance(first, Exception) or isinstance(second, Exception):
        raise ModelError(f"checkpoint {name} gives NaN or infinity on the golden input. Restore it or retrain")
    if not grid.mask[first.action] or abs(sum(first.policy) - 1.0) > 1e-3:
        raise ModelError(
            f"checkpoint {name}: on the golden input expected an allowed action and a policy that sums to 1, found "
            f"action {first.action} and {first.policy}"
        )
    if (first.action, first.value, first.q_values) != (second.action, second.value, second.q_values):
        raise ModelError(f"checkpoint {name} decides differently on the same input twice, so nothing could be replayed")
    return first


# --- replacing -------------------------------------------------------------------------------------------------------


def differences(old: ServedModel, new: ServedModel) -> list[str]:
    """What clients of the old model would have to change for the new one."""
    fields: dict[str, Callable[[ServedModel], object]] = {
        "timeframe": lambda model: str(model.timeframe),
        "observation shapes": lambda model: model.metadata.observation_shapes,
        "features": lambda model: model.features.fingerprint,
        "target positions": lambda model: model.target_positions,
        "largest leverage": lambda model: model.max_leverage,
        "allowed actions": lambda model: model.grid.mask.tolist(),
    }
    return [f"{name}: expected {get(old)}, found {get(new)}" for name, get in fields.items() if get(old) != get(new)]


class Serving:
    """The model that answers now, and the one way to replace it.

    Replacing is one assignment. Whoever asked before keeps the model he began with, because a question and its answer
    go through one `ServedModel`.
    """

    def __init__(self, model: ServedModel) -> None:
        self.model = model
        self._replacing = threading.Lock()

    def replace(self, source: Path | None = None) -> tuple[ServedModel, ServedModel]:
        """Load, compare, warm up, swap. source: default where the present model came from. Returns (new, previous).

        Blocks for seconds: call it off the event loop. Raises ModelError, and BlockingIOError while another
        replacement runs; then the old model goes on serving.
        """
        if not self._replacing.acquire(blocking=False):
            raise BlockingIOError("a reload is in progress")
        try:
            old = self.model
            new = load_model(source or old.source)
            found = differences(old, new)
            if found:
                raise ModelError(
                    f"{new.label} cannot take the place of {old.label}: {'; '.join(found)}. Clients would have to "
                    f"change with it, so start a service of its own for it"
                )
            self.model = new
            return new, old
        finally:
            self._replacing.release()
