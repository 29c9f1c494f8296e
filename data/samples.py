"""Real bars that need no exchange: the daily indices that ship inside the `arch` package.

They are what `make demo` trains on. 5,031 trading days, 1999-01-04 to 2018-12-31, as published by Yahoo!
Finance and distributed with arch (https://arch.readthedocs.io, module `arch.data`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import pandas as pd

from data.bars import Bars
from data.quality import DataQualityError
from data.timeframe import Timeframe

SAMPLE_VENUE: Final = "sample"


def _sp500() -> pd.DataFrame:
    # arch imports statsmodels (over a second); nobody who loads no sample should wait for it.
    import arch.data.sp500

    return arch.data.sp500.load()


def _nasdaq() -> pd.DataFrame:
    import arch.data.nasdaq

    return arch.data.nasdaq.load()


_LOADERS: Final[Mapping[str, Callable[[], pd.DataFrame]]] = {"sp500": _sp500, "nasdaq": _nasdaq}
SAMPLES: Final = tuple(_LOADERS)


def load_sample(name: str = "sp500") -> Bars:
    """Daily bars of a stock index: symbol SP500 or NASDAQ, venue "sample".

    These are price indices: no splits, no reinvested dividends, so the prices need no adjustment: arch's "Adj
    Close" equals "Close" on every day, and open, high and low belong to the same scale. That is checked,
    because adjusting only the close would put it outside [low, high].

    Raises `ValueError` for an unknown name and `DataQualityError` if arch ever ships adjusted closes.
    """
    if name not in _LOADERS:
        raise ValueError(f"Unknown sample {name!r}. Expected one of {', '.join(SAMPLES)}.")
    frame = _LOADERS[name]()
    if not np.array_equal(frame["Adj Close"], frame["Close"]):
        raise DataQualityError(
            f"Sample {name}: Adj Close differs from Close, so open, high and low are on another scale. Expected an "
            "unadjusted index as in arch 8.0; install that version."
        )
    columns = {"Open": "open", "High": "high", "Low": "low", "Close": "close", "Volume": "volume"}
    return Bars.from_frame(
        frame.rename(columns=columns), symbol=name.upper(), timeframe=Timeframe.parse("1d"), venue=SAMPLE_VENUE
    )
