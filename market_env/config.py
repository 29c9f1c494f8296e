"""Configuration of the market: every assumption about trading, with its unit and its source.

`MarketConfig()` is a complete, usable market. All sections are frozen and closed: a misspelt key is an error.
"""

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

BPS = 1e-4  # one basis point

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """Base of every configuration section: immutable, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ActionConfig(Section):
    """What the agent may ask for: a grid of target exposures (position value / equity)."""

    levels: tuple[float, ...] = Field(
        default=(-1.0, -0.5, 0.0, 0.5, 1.0),
        description="target exposure of each action as a fraction of max_leverage; increasing, within [-1, 1]",
    )
    max_leverage: float = Field(default=1.0, gt=0.0, le=100.0, description="largest |exposure|, x equity")
    spot: bool = Field(default=False, description="no short selling: actions with a negative target are masked")
    no_trade_band: float = Field(
        default=0.05, ge=0.0, lt=1.0, description="|target - exposure| below this places no order (target != 0)"
    )

    @model_validator(mode="after")
    def _levels_form_a_grid(self) -> Self:
        levels = self.levels
        if len(levels) < 2 or any(b <= a for a, b in pairwise(levels)):
            raise ValueError(f"actions.levels must be at least two increasing numbers, got {levels}")
        if levels[0] < -1.0 or levels[-1] > 1.0:
            raise ValueError(f"actions.levels must lie within [-1, 1] (scaled by max_leverage), got {levels}")
        if self.spot and all(level < 0.0 for level in levels):
            raise ValueError(f"actions.spot masks every level of {levels}; add a level >= 0")
        return self


class FillConfig(Section):
    """How an order meets the next bar (formulas in `fills.py`)."""

    mode: Literal["stochastic", "deterministic"] = Field(
        default="stochastic",
        description="deterministic: all of the order at the next open, no cost but the fee",
    )
    order_type: Literal["market", "limit"] = Field(default="market", description="kind of order an action places")
    limit_offset_bps: float = Field(
        default=0.0, ge=0.0, lt=10_000.0, description="limit price below (buy) or above (sell) the decision close, bp"
    )
    touch_fill_probability: Fraction = Field(
        default=0.25, description="chance that a limit order fills when the bar only touches its price"
    )
    reject_probability: Fraction = Field(default=0.002, description="chance that an order is rejected")
    partial_probability: Fraction = Field(
        default=0.02, description="chance that only a Beta(2,2) fraction of the fillable quantity fills"
    )
    volume_cap: float = Field(
        default=0.05, gt=0.0, le=1.0, description="largest fill as a fraction of the bar's volume"
    )
    latency_fraction: Fraction = Field(default=0.01, description="order latency / bar duration")
    volatility_slippage: float = Field(
        default=0.02, ge=0.0, description="kappa: random slippage per unit of bar volatility, x |z|"
    )
    impact_coefficient: float = Field(default=0.6, ge=0.0, description="Y of the square-root impact law")
    cost_cap: float = Field(
        default=0.05, gt=0.0, lt=1.0, description="largest spread + slippage + impact, fraction of the price"
    )


class CostConfig(Section):
    """What trading and holding cost beyond the fill price (formulas in `costs.py`)."""

    taker_fee_bps: float = Field(default=5.0, ge=0.0, lt=1_000.0, description="fee on |quantity| x fill price, bp")
    maker_fee_bps: float = Field(default=2.0, ge=0.0, lt=1_000.0, description="fee of a resting limit order, bp")
    short_interest_annual: float = Field(
        default=0.02, ge=0.0, lt=10.0, description="simple interest on short notional, per year of 365.25 days"
    )
    margin_interest_annual: float = Field(
        default=0.06, ge=0.0, lt=10.0, description="simple interest on negative cash, per year of 365.25 days"
    )
    perpetual: bool = Field(default=False, description="perpetual swap: funding at settlements instead of interest")
    funding_rate: float = Field(
        default=1e-4, gt=-0.1, lt=0.1, description="paid by longs to shorts at each settlement, fraction of notional"
    )
    funding_interval_hours: float = Field(
        default=8.0, gt=0.0, description="hours between settlements, counted from 00:00 UTC"
    )


class MarginConfig(Section):
    """When the venue says no, and when it closes the position."""

    enforce: bool = Field(
        default=True, description="check initial margin at the fill and maintenance margin within the bar"
    )
    maintenance: float = Field(
        default=0.005, ge=0.0, lt=1.0, description="equity / position value below which the venue liquidates"
    )
    liquidation_fee_bps: float = Field(
        default=50.0, ge=0.0, lt=1_000.0, description="fee on the value of a liquidated position, bp"
    )


class EpisodeConfig(Section):
    """Where an episode starts and when it ends."""

    initial_equity: float = Field(default=10_000.0, gt=0.0, description="cash at the start, quote currency")
    horizon: int | None = Field(default=512, ge=1, description="steps until truncation; null: until the data ends")
    random_start: bool = Field(default=True, description="draw the first bar; false: the first decision bar")
    ruin_fraction: float = Field(
        default=0.05, gt=0.0, lt=1.0, description="equity / initial equity at which the episode terminates"
    )


class RewardConfig(Section):
    """What a step is worth (formulas in `rewards.py`)."""

    kind: Literal["log_return", "excess_log_return", "differential_sharpe"] = Field(
        default="log_return", description="base reward; excess is over holding the instrument"
    )
    scale: float = Field(default=100.0, gt=0.0, description="reward per unit of log return (100: percent)")
    clip: float = Field(default=20.0, gt=0.0, description="bound of |reward| before the ruin penalty")
    ruin_penalty: float = Field(default=5.0, ge=0.0, description="subtracted when the account is ruined")
    drawdown_penalty: float = Field(default=0.0, ge=0.0, description="lambda: x scale x increase of the drawdown")
    variance_penalty: float = Field(default=0.0, ge=0.0, description="eta: x squared scaled return")
    sharpe_rate: float = Field(
        default=0.01, gt=0.0, lt=1.0, description="adaptation rate of the differential Sharpe ratio, per step"
    )


class ObservationConfig(Section):
    """What the agent sees."""

    window: int = Field(default=64, ge=1, le=4096, description="T: bars of features in an observation")


class RandomisationConfig(Section):
    """Domain randomisation of the market's frictions, drawn per episode. For training only."""

    enabled: bool = Field(default=False, description="off in evaluation")
    fee: tuple[float, float] = Field(default=(0.5, 2.0), description="range of the factor on fees")
    spread: tuple[float, float] = Field(default=(0.5, 2.0), description="range of the factor on the half-spread")
    volatility_slippage: tuple[float, float] = Field(default=(0.5, 2.0), description="range of the factor on kappa")
    latency: tuple[float, float] = Field(default=(0.5, 2.0), description="range of the factor on latency")
    initial_exposure: bool = Field(default=True, description="start with a random target exposure already held")

    @model_validator(mode="after")
    def _ranges_are_ordered(self) -> Self:
        for name in ("fee", "spread", "volatility_slippage", "latency"):
            low, high = getattr(self, name)
            if not 0.0 <= low <= high:
                raise ValueError(f"randomisation.{name} must be 0 <= low <= high, got ({low}, {high})")
        return self


class MarketConfig(Section):
    """Everything the market needs to know besides the bars and the instrument."""

    actions: ActionConfig = ActionConfig()
    fills: FillConfig = FillConfig()
    costs: CostConfig = CostConfig()
    margin: MarginConfig = MarginConfig()
    episode: EpisodeConfig = EpisodeConfig()
    reward: RewardConfig = RewardConfig()
    observation: ObservationConfig = ObservationConfig()
    randomisation: RandomisationConfig = RandomisationConfig()

    def for_evaluation(self) -> Self:
        """The same market without domain randomisation, from the first decision bar to the end of the data."""
        return self.model_copy(
            update={
                "randomisation": self.randomisation.model_copy(update={"enabled": False}),
                "episode": self.episode.model_copy(update={"horizon": None, "random_start": False}),
            }
        )
