import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import quality
from data.bars import Bars
from data.quality import Gap, QualityReport, QualityScan, find_gaps, format_time
from data.synthetic import martingale
from data.timeframe import Timeframe

Make = Callable[..., Bars]
HOUR = Timeframe.parse("1h")
H = HOUR.milliseconds


def columns_of(bars: Bars) -> dict[str, np.ndarray]:
    names = ("timestamp", "open", "high", "low", "close", "volume")
    return {name: getattr(bars, name).copy() for name in names}


def scan(columns: dict[str, np.ndarray], block: int = 10**9) -> QualityReport:
    found = QualityScan(HOUR)
    for start in range(0, len(columns["timestamp"]), block):
        found.add(**{name: column[start : start + block] for name, column in columns.items()})
    return found.report()


def test_gaps_are_the_grid_times_without_a_bar() -> None:
    """Bars at 0, 1, 4, 5 and 9 h: the hours 2, 3 and 6, 7, 8 are missing."""
    times = np.array([0, 1, 4, 5, 9]) * H
    assert find_gaps(times, HOUR) == [Gap(2 * H, 4 * H, 2), Gap(6 * H, 9 * H, 3)]


def test_a_report_counts_what_a_person_would(bars_at: Make) -> None:
    columns = columns_of(bars_at([0, 1, 4, 5, 9]))
    columns["volume"][1:3] = 0.0
    columns["high"][4] = columns["low"][4] = columns["open"][4] = columns["close"][4] = 400.0
    report = scan(columns)
    assert (report.bars, report.gaps, report.missing_bars, report.zero_volume, report.flat_bars) == (5, 2, 5, 2, 1)
    assert report.longest_gap == Gap(6 * H, 9 * H, 3)
    assert report.largest_return == pytest.approx(np.log(400.0 / 104.0))
    assert report.largest_return_at == 9 * H
    assert report.ok


def test_a_falling_close_keeps_its_sign(bars_at: Make) -> None:
    columns = columns_of(bars_at([0, 1]))
    columns["close"][1] = columns["low"][1] = 50.0
    assert scan(columns).largest_return == pytest.approx(np.log(50.0 / 101.0))


@pytest.mark.parametrize("block", [1, 2, 3, 7])
def test_block_by_block_gives_the_same_report(bars_at: Make, block: int) -> None:
    """Also when a gap, a duplicate or a jump lies between two blocks."""
    columns = columns_of(bars_at(range(8)))
    columns["timestamp"] = np.array([0, 1, 4, 5, 5, 9, 8, 10]) * H
    columns["volume"][3] = -1.0
    whole, parts = scan(columns), scan(columns, block)
    assert (
        {v.rule: (v.count, v.first_row) for v in parts.violations}
        == {v.rule: (v.count, v.first_row) for v in whole.violations}
        == {"negative_volume": (1, 3), "duplicate": (1, 4), "unsorted": (1, 6)}
    )
    assert (parts.bars, parts.gaps, parts.missing_bars, parts.duplicates, parts.longest_gap) == (
        whole.bars,
        whole.gaps,
        whole.missing_bars,
        whole.duplicates,
        whole.longest_gap,
    )
    assert parts.largest_return == whole.largest_return
    assert not whole.ok


def test_no_bars_are_not_ok() -> None:
    assert not QualityScan(HOUR).report().ok


def test_times_are_printed_no_finer_than_needed() -> None:
    assert format_time(0) == "1970-01-01T00:00Z"
    assert format_time(1_500) == "1970-01-01T00:00:01.500Z"


@settings(max_examples=300, deadline=None)
@given(
    column=st.sampled_from(["timestamp", "open", "high", "low", "close", "volume"]),
    row=st.integers(0, 5),
    value=st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0, -1.0, 5e-324, 1.7e308, 100.0, 101.5, 103.0]),
    hour=st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0, 3.0, 9.0]),
)
def test_the_quick_look_passes_exactly_what_breaks_no_rule(column: str, row: int, value: float, hour: float) -> None:
    """`all_good` answers for nearly all bars; the rules one by one, which tell what is wrong, must agree with it."""
    bars = martingale(6, seed=3)
    columns = columns_of(bars)
    columns[column][row] = bars.timestamp[0] + int(hour * H) if column == "timestamp" else value
    with pytest.MonkeyPatch.context() as patch:
        quick = quality.all_good(*columns.values(), HOUR.origin_ms, HOUR.milliseconds)
        patch.setattr(quality, "all_good", lambda *_: False)
        assert quick == (quality.find_violations(HOUR, **columns) == [])
