from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from data.bars import VALUE_COLUMNS, Bars, concatenate, parse_time
from data.quality import DataQualityError
from data.timeframe import Timeframe

Make = Callable[..., Bars]
HOUR = Timeframe.parse("1h")


def one_bar(**changes: float) -> dict[str, np.ndarray]:
    values = {"open": 10.0, "high": 12.0, "low": 9.0, "close": 11.0, "volume": 3.0, **changes}
    return {name: np.array([11.0 if name == "close" else value, value]) for name, value in values.items()}


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"close": np.nan}, "every value is a finite number"),
        ({"volume": np.inf}, "every value is a finite number"),
        ({"low": 0.0}, "prices are above zero"),
        ({"open": -1.0, "low": -2.0}, "prices are above zero"),
        ({"close": 12.5}, "low ≤ min"),
        ({"low": 10.5}, "low ≤ min"),
        ({"volume": -1.0}, "volume is not negative"),
    ],
)
def test_a_row_that_breaks_a_rule_is_refused_by_name(changes: dict[str, float], rule: str) -> None:
    with pytest.raises(DataQualityError, match=rule) as refusal:
        Bars("X", HOUR, "test", np.array([0, HOUR.milliseconds]), **one_bar(**changes))
    assert "1970-01-01T0" in str(refusal.value)


@pytest.mark.parametrize(
    ("timestamps", "rule"),
    [
        ([0, 1_800_000], "grid"),
        ([0, 0], "once"),
        ([3_600_000, 0], "increase"),
    ],
)
def test_times_that_break_a_rule_are_refused(timestamps: list[int], rule: str) -> None:
    with pytest.raises(DataQualityError, match=rule):
        Bars("X", HOUR, "test", np.array(timestamps), **one_bar())


def test_the_first_bad_row_and_the_count_are_named(bars_at: Make) -> None:
    frame = bars_at(range(10)).to_frame()
    frame.loc[frame.index[[4, 7]], "high"] = 1.0
    with pytest.raises(DataQualityError, match=r"2 rows break .*, the first is row 4 \(1970-01-01T04:00Z: open 104,"):
        Bars.from_frame(frame, symbol="X", timeframe="1h", venue="test")


def test_gaps_and_zero_volume_are_legal(bars_at: Make) -> None:
    bars = bars_at([0, 1, 50])
    assert len(bars) == 3
    Bars("X", HOUR, "test", bars.timestamp, bars.open, bars.high, bars.low, bars.close, np.zeros(3))


def test_columns_of_different_lengths_are_refused(bars_at: Make) -> None:
    bars = bars_at([0, 1])
    with pytest.raises(DataQualityError, match="different lengths"):
        Bars("X", HOUR, "test", bars.timestamp, bars.open, bars.high, bars.low, bars.close, bars.volume[:1])


def test_nobody_can_change_bars(bars_at: Make) -> None:
    """Neither through the bars, nor through the array they were made from."""
    source = bars_at([0, 1, 2])
    close = source.close.copy()
    bars = Bars("X", HOUR, "test", source.timestamp, source.open, source.high, source.low, close, source.volume)
    close[0] = 999.0
    assert bars.close[0] == 101.0
    with pytest.raises(ValueError, match="read-only"):
        bars.close[0] = 999.0
    with pytest.raises(AttributeError):
        bars.symbol = "Y"  # type: ignore[misc]
    frame = bars.to_frame()
    frame["close"] = 0.0
    assert bars.close[0] == 101.0


def test_slices_share_memory_and_keep_the_meaning_of_python_slices(bars_at: Make) -> None:
    bars = bars_at(range(10))
    assert bars.slice(2, 5).timestamp.tolist() == bars.timestamp[2:5].tolist()
    assert bars.slice(-3, None).close.tolist() == bars.close[-3:].tolist()
    assert np.shares_memory(bars.slice(2, 5).close, bars.close)
    assert len(bars.slice(5, 5)) == 0


def test_between_includes_the_start_and_excludes_the_end(bars_at: Make) -> None:
    bars = bars_at([0, 1, 2, 26, 27])
    assert bars.between("1970-01-01T01:00", "1970-01-02T03:00").close.tolist() == [102.0, 103.0, 104.0]
    assert bars.between("1970-01-02").close.tolist() == [104.0, 105.0]
    assert bars.between(end=3_600_000).close.tolist() == [101.0]
    assert bars.between("1970-01-01T03:00+02:00", None).close.tolist() == bars.close[1:].tolist()


def test_parse_time_refuses_what_is_no_time() -> None:
    assert parse_time("2020-01-01") == 1_577_836_800_000
    with pytest.raises(ValueError, match="ISO 8601"):
        parse_time("yesterday-ish")


def test_a_frame_and_back_is_the_same_bars(bars_at: Make) -> None:
    bars = bars_at([0, 1, 5])
    assert Bars.from_frame(bars.to_frame(), symbol="X", timeframe="1h", venue="test") == bars
    with_column = bars.to_frame().reset_index()
    assert Bars.from_frame(with_column, symbol="X", timeframe=HOUR, venue="test") == bars


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_a_frame_may_count_time_in_any_unit_and_zone(bars_at: Make, unit: str) -> None:
    bars = bars_at([0, 1, 5])
    frame = bars.to_frame()
    frame.index = pd.DatetimeIndex(frame.index).as_unit(unit).tz_convert("America/New_York")  # type: ignore[arg-type]
    assert Bars.from_frame(frame, symbol="X", timeframe="1h", venue="test") == bars


def test_a_frame_without_a_column_is_refused_by_its_name(bars_at: Make) -> None:
    with pytest.raises(DataQualityError, match="no column volume"):
        Bars.from_frame(bars_at([0]).to_frame().drop(columns="volume"), symbol="X", timeframe="1h", venue="test")


def test_a_time_between_two_milliseconds_is_refused(bars_at: Make) -> None:
    frame = bars_at([0, 1]).to_frame()
    frame.index = pd.DatetimeIndex(frame.index).as_unit("ns") + pd.Timedelta(1, "ns")
    with pytest.raises(DataQualityError, match="between two milliseconds"):
        Bars.from_frame(frame, symbol="X", timeframe="1h", venue="test")


def test_the_fingerprint_changes_with_any_value_and_any_name(bars_at: Make) -> None:
    bars = bars_at(range(5))
    fingerprints = {bars.fingerprint, bars_at(range(5), symbol="Y").fingerprint, bars_at([0, 1, 2, 3, 5]).fingerprint}
    for name in VALUE_COLUMNS:
        frame = bars.to_frame()
        frame.iloc[2, frame.columns.get_loc(name)] *= 1.0 + 2**-52
        fingerprints.add(Bars.from_frame(frame, symbol="X", timeframe="1h", venue="test").fingerprint)
    assert len(fingerprints) == 3 + len(VALUE_COLUMNS)
    assert bars_at(range(5)).fingerprint == bars.fingerprint
    assert len(bars.fingerprint) == 16


def test_joined_parts_are_the_whole_and_overlaps_are_refused(bars_at: Make) -> None:
    bars = bars_at(range(10))
    assert concatenate([bars.slice(0, 4), bars.slice(4, 10)]) == bars
    for first, second in ((5, 4), (5, 0)):
        with pytest.raises(DataQualityError, match="must not overlap"):
            concatenate([bars.slice(0, first), bars.slice(second, 10)])
    with pytest.raises(ValueError, match="different datasets"):
        concatenate([bars.slice(0, 5), bars_at([5], symbol="Y")])
