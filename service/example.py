"""A request body that works: real bars where there are any."""

from typing import Any

from configs.experiment import Experiment
from data.bars import VALUE_COLUMNS, Bars


def example_request(
    experiment: Experiment, bars: Bars, *, now_ms: int, position: float, simulations: int | None
) -> dict[str, Any]:
    """The body of POST /v1/act for the newest closed bars.

    Raises ValueError when there are fewer closed bars than the model needs.
    """
    required = experiment.market.observation.window + experiment.feature_set.warmup - 1
    closed = bars.between(None, now_ms - bars.timeframe.milliseconds + 1)
    if len(closed) < required:
        raise ValueError(
            f"{bars.symbol}: expected at least {required} closed bars, found {len(closed)}. Fetch or import more"
        )
    window = closed.slice(-required, None)
    columns = [window.timestamp.tolist(), *(getattr(window, name).tolist() for name in VALUE_COLUMNS)]
    request: dict[str, Any] = {
        "symbol": bars.symbol,
        "timeframe": str(bars.timeframe),
        "bars": [list(row) for row in zip(*columns, strict=True)],
        "position": position,
    }
    if simulations is not None:
        request["simulations"] = simulations
    return request
