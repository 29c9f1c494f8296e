import pytest

from data.timeframe import DAY_MS, Timeframe

HOUR = 3_600_000


@pytest.mark.parametrize(
    ("text", "seconds", "spelling"),
    [
        ("30s", 30, "30s"),
        ("1m", 60, "1m"),
        ("60m", 3600, "1h"),
        ("4h", 14_400, "4h"),
        ("24h", 86_400, "1d"),
        ("90m", 5_400, "90m"),
        ("1w", 604_800, "1w"),
        (" 1h ", 3600, "1h"),
    ],
)
def test_parse_and_str_are_inverse(text: str, seconds: int, spelling: str) -> None:
    frame = Timeframe.parse(text)
    assert (frame.seconds, str(frame)) == (seconds, spelling)
    assert Timeframe.parse(str(frame)) == frame


@pytest.mark.parametrize("text", ["", "h", "1", "0h", "-1h", "1.5h", "1M", "1H", "1y", "h1"])
def test_an_unknown_timeframe_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r'for example "5m", "1h" or "1d"'):
        Timeframe.parse(text)


@pytest.mark.parametrize("milliseconds", [0, -1000, 1500])
def test_a_timeframe_is_a_positive_whole_number_of_seconds(milliseconds: int) -> None:
    with pytest.raises(ValueError, match="whole number of seconds"):
        Timeframe(milliseconds)


@pytest.mark.parametrize(
    ("instant", "floor", "ceil"),
    [(0, 0, 0), (1, 0, HOUR), (HOUR - 1, 0, HOUR), (HOUR, HOUR, HOUR), (-1, -HOUR, 0)],
)
def test_floor_and_ceil_find_the_bars_around_an_instant(instant: int, floor: int, ceil: int) -> None:
    frame = Timeframe.parse("1h")
    assert (frame.floor(instant), frame.ceil(instant)) == (floor, ceil)
    assert frame.is_aligned(instant) == (floor == ceil)


def test_weeks_open_on_monday() -> None:
    """1970-01-05 was the first Monday of the epoch."""
    week = Timeframe.parse("1w")
    assert week.is_aligned(4 * DAY_MS)
    assert not week.is_aligned(0)
    assert week.floor(10 * DAY_MS) == 4 * DAY_MS


def test_a_bar_closes_one_length_after_it_opens() -> None:
    assert Timeframe.parse("1h").close_of(HOUR) == 2 * HOUR
