"""What goes over the wire. Requests are read strictly: no unknown field, no text for a number, no NaN or infinity."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

MAX_SIMULATIONS = 512
MAX_BATCH_ROWS = 64

# Largest and smallest amounts that are taken for real. Far beyond any market, and far within float64, so that no
# ratio, square or sum of a window can overflow.
LARGEST_AMOUNT = 1e18
SMALLEST_PRICE = 1e-15
_YEAR_9999_MS = 253_402_300_799_999

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Amount = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0.0, le=LARGEST_AMOUNT)]
Milliseconds = Annotated[int, Field(strict=True, ge=0, le=_YEAR_9999_MS)]
BarRow = Annotated[
    tuple[Milliseconds, Number, Number, Number, Number, Number],
    Field(description="[open time in epoch ms UTC, open, high, low, close, volume]"),
]


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Response(BaseModel):
    # A response is checked too: a NaN that a model made must not leave as if it were an answer.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class AccountState(_Request):
    """Of the account behind the position, what the agent sees. Money in any one currency: only ratios count.

    Each field that is left out is that of an account which opened the position just now, at the last close.
    """

    equity: Amount | None = Field(None, description="equity at the last close; default: the initial equity")
    initial_equity: Amount | None = Field(None, description="equity the account began with; default: the equity")
    peak_equity: Amount | None = Field(None, description="highest equity at a close; default: the larger of the two")
    entry_price: Amount | None = Field(
        None, description="average price of the position, costs included; default: the last close"
    )
    entry_volatility: Annotated[float, Field(gt=0.0, le=10.0, allow_inf_nan=False)] | None = Field(
        None, description="volatility per bar when the position was opened; default: the present one"
    )
    bars_held: Annotated[int, Field(ge=0, le=1_000_000)] = Field(0, description="bars since the position was opened")
    last_target: Annotated[float, Field(ge=-1.0, le=1.0, allow_inf_nan=False)] | None = Field(
        None, description="target position of the last decision; default: the position"
    )
    last_fill_fraction: Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)] = Field(
        1.0, description="filled share of the last order"
    )


class ActRequest(_Request):
    """A window of closed bars and the position held: what should the position be?"""

    symbol: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/^=-]{0,31}$", description="instrument, such as BTC/USDT")
    timeframe: str = Field(max_length=8, description="length of a bar, such as 1h; the model's own")
    bars: list[BarRow] = Field(
        description="closed bars, oldest first, exactly as many as GET /v1/model says in required_bars"
    )
    position: Annotated[float, Field(ge=-1.0, le=1.0, allow_inf_nan=False)] = Field(
        description="exposure held now: position value / equity, as a fraction of the largest leverage"
    )
    account: AccountState | None = Field(None, description="more about the account; default: freshly opened")
    simulations: Annotated[int, Field(ge=0, le=MAX_SIMULATIONS)] | None = Field(
        None, description="search budget; default: the model's own; 0 acts by the prior"
    )
    deterministic: bool = Field(
        True,
        description="every decision of this service is: the same request and model give the same decision to the "
        "last bit, whatever else is asked at the time. Accepted for clients that want to say so",
    )


class ActHead(ActRequest):
    """An `ActRequest` whose bars have been read already; null stands in their place."""

    bars: None = Field(description="read already")  # type: ignore[assignment]


class BatchRequest(_Request):
    """Several independent decisions."""

    requests: list[ActRequest] = Field(min_length=1, max_length=MAX_BATCH_ROWS)


class ReloadRequest(_Request):
    """Which checkpoint to serve from now on."""

    checkpoint: str | None = Field(
        None,
        max_length=512,
        description="a checkpoint directory under the runs or models directory of the service, such as "
        "demo/checkpoints/best; default: where the present model was loaded from",
    )


class LoginRequest(_Request):
    """A key to log a browser in with."""

    key: SecretStr = Field(min_length=1, max_length=512, description="an API key with scope read")


class Outlook(_Response):
    """One thing chance may do after the chosen action, as the model sees it, and what that has meant in training.

    mean_return and quantiles describe the next bar's log return over the training bars that were given this code.
    They are null for a code no training bar was given.
    """

    code: int
    probability: float
    mean_return: float | None
    quantiles: dict[str, float] | None


class SearchStatistics(_Response):
    """How the plan was made."""

    simulations: int
    depth: int = Field(description="deepest bar looked ahead")
    visits: list[int] = Field(description="simulations through each action")


class Latency(_Response):
    """Where the time went, milliseconds."""

    queue: float
    inference: float
    total: float


class ActResponse(_Response):
    """A decision. Lists are over the model's actions, in the order of GET /v1/model's target_positions.

    value and q_values are expected discounted returns in the unit of the training reward (by default percent of
    equity, as log return).
    """

    action: int
    target_position: float = Field(description="position to hold, in the unit of the request's position")
    policy: list[float]
    value: float
    q_values: list[float]
    outlook: list[Outlook] = Field(description="most probable first; the probabilities sum to 1")
    search: SearchStatistics
    model: str = Field(description="name and hash of the checkpoint that decided")
    bar_ts: int = Field(description="open time of the last bar, epoch ms")
    stale: bool = Field(description="whether the last bar closed more than two bars ago")
    latency_ms: Latency
    request_id: str


class BatchResponse(_Response):
    """Decisions in the order they were asked for."""

    results: list[ActResponse]


class CodeStatistics(_Response):
    """What one chance code has meant: next-bar log returns of the training bars it was given."""

    code: int
    count: int
    mean_return: float
    quantiles: dict[str, float]


class ModelDescription(_Response):
    """The model that is served, and what it wants to be asked."""

    model: str
    sha256: str
    code_version: str
    experiment: str
    description: str
    symbols: list[str] = Field(description="instruments it was trained on")
    timeframe: str
    required_bars: int = Field(description="bars a request must hold: window + feature_warmup - 1")
    window: int
    feature_warmup: int
    features: list[str]
    feature_fingerprint: str
    target_positions: list[float] = Field(description="position each action asks for")
    allowed: list[bool] = Field(description="which actions the model may take")
    simulations: int = Field(description="search budget when a request names none")
    env_steps: int
    updates: int
    validation_return: float | None
    codes: list[CodeStatistics]
    loaded_at: str
    golden_action: int = Field(description="decision on a fixed made-up input, taken when the model was loaded")
    golden_value: float = Field(description="value of that decision")


class ReloadResponse(_Response):
    """The outcome of a reload."""

    model: str
    previous: str | None
    changed: bool


class Health(_Response):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(_Response):
    """The service can decide."""

    status: Literal["ready"] = "ready"
    model: str


class SessionDescription(_Response):
    """A browser's login."""

    name: str = Field(description="name of the key it stands for")
    scopes: list[str]
    csrf_token: str = Field(description="goes into the header X-CSRF-Token of every request that changes something")
    expires_ms: int = Field(description="latest end, epoch ms; a login that is not used ends earlier")


class ErrorBody(_Response):
    """Every answer that is not a success."""

    error: str = Field(description="stable name of the kind of error")
    detail: str = Field(description="what, expected, found, next step; for people")
    request_id: str
