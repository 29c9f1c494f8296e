"""Shared by the tests of the data package."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from data.bars import Bars
from data.timeframe import Timeframe

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real bars beside the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the folder of real bars (../shared/data) is absent")
    return SHARED_DATA


@pytest.fixture
def store_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store that the command line uses too."""
    root = tmp_path / "bars"
    monkeypatch.setenv("SMU0_BARS", str(root))
    return root


@pytest.fixture
def bars_at() -> Callable[..., Bars]:
    """Makes bars at these multiples of the timeframe since the epoch: flat at a price that counts up from 100."""

    def make(steps: Sequence[int], *, timeframe: str = "1h", symbol: str = "X", first_price: float = 100.0) -> Bars:
        frame = Timeframe.parse(timeframe)
        price = first_price + np.arange(len(steps), dtype=float)
        timestamp = np.array(steps, dtype=np.int64) * frame.milliseconds
        return Bars(symbol, frame, "test", timestamp, price, price + 2, price - 2, price + 1, np.full(len(steps), 5.0))

    return make
