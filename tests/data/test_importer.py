"""Files of every make are imported right, or refused with the row and the reason."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data.bars import Bars, concatenate
from data.importer import FileFormat, FileReader, ImportRefused, dataset_of_file_name
from data.quality import DataQualityError
from data.store import DatasetKey
from data.synthetic import martingale
from data.timeframe import Timeframe

Make = Callable[..., Bars]
Write = Callable[[str], Path]
HOUR = Timeframe.parse("1h")
KEY = DatasetKey("test", "X", HOUR)

# Four good bars, 2021-03-04T05:00Z on; epoch 1614834000.
HEADER = "timestamp,open,high,low,close,volume"
PRICES = ["100,102,98,101,5", "101,103,99,102,5", "102,104,100,103,0", "103,105,101,104,5"]
EPOCH = 1_614_834_000


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_text(text: str) -> Path:
        path = tmp_path / "bars.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return write_text


def csv(times: list[str], *, header: str = HEADER, prices: list[str] = PRICES) -> str:
    return "\n".join([header, *(f"{time},{row}" for time, row in zip(times, prices, strict=True))]) + "\n"


def read(path: Path, file_format: FileFormat | None = None, *, key: DatasetKey = KEY) -> Bars:
    return concatenate(list(FileReader(path, key, file_format).blocks()))


def hours(spelling: str) -> list[str]:
    times = pd.date_range("2021-03-04 05:00", periods=4, freq="h")
    return [time.strftime(spelling) for time in times]


@pytest.fixture
def good(bars_at: Make) -> Bars:
    bars = bars_at([EPOCH // 3600 + i for i in range(4)])
    volume = np.array([5.0, 5.0, 0.0, 5.0])
    return Bars("X", HOUR, "test", bars.timestamp, bars.open, bars.high, bars.low, bars.close, volume)


@pytest.mark.parametrize(
    "times",
    [
        pytest.param([str(EPOCH + 3600 * i) for i in range(4)], id="epoch seconds"),
        pytest.param([f"{EPOCH + 3600 * i}.0" for i in range(4)], id="epoch seconds with decimals"),
        pytest.param([str((EPOCH + 3600 * i) * 10**3) for i in range(4)], id="epoch milliseconds"),
        pytest.param([str((EPOCH + 3600 * i) * 10**6) for i in range(4)], id="epoch microseconds"),
        pytest.param([str((EPOCH + 3600 * i) * 10**9) for i in range(4)], id="epoch nanoseconds"),
        pytest.param(hours("%Y-%m-%d %H:%M:%S"), id="ISO, no zone"),
        pytest.param(hours("%Y-%m-%dT%H:%M"), id="ISO to the minute"),
        pytest.param(hours("%Y-%m-%dT%H:%M:%SZ"), id="ISO, Z"),
        pytest.param(hours("%Y-%m-%d %H:%M:%S+00:00"), id="ISO, offset"),
        pytest.param(hours("%Y-%m-%d %H:%M:%S.000"), id="ISO, milliseconds"),
        pytest.param([" " + time + " " for time in hours("%Y-%m-%dT%H:%M:%SZ")], id="spaces around"),
        pytest.param(
            ["2021-03-04T05:00:00Z", "2021-03-04T07:00+01:00", "2021-03-04T02:00-0500", "2021-03-04T08:00Z"],
            id="offsets that differ but are given",
        ),
    ],
)
def test_every_way_to_write_time_is_read_as_the_same_bars(write: Write, good: Bars, times: list[str]) -> None:
    assert read(write(csv(times))) == good


@pytest.mark.parametrize("spelling", ["%Y-%m-%d", "%Y-%m-%dT00:00:00Z", "%Y-%m-%d 00:00:00+00:00"])
def test_daily_bars_may_be_named_by_their_date(write: Write, spelling: str) -> None:
    bars = martingale(4, seed=1, timeframe="1d", start="2021-03-04")
    frame = bars.to_frame()
    frame.index = frame.index.strftime(spelling)
    key = DatasetKey(bars.venue, bars.symbol, bars.timeframe)
    assert read(write(frame.rename_axis("Date").to_csv()), key=key) == bars


@pytest.mark.parametrize(
    "header",
    [
        "Date,Open,High,Low,Close,Volume",
        "open_time,open,high,low,close,volume",
        "Open Time,OPEN,HIGH,LOW,CLOSE,VOL",
        '"unix","o","h","l","c","v"',
    ],
)
def test_common_column_names_are_recognised(write: Write, good: Bars, header: str) -> None:
    assert read(write(csv(hours("%Y-%m-%dT%H:%MZ"), header=header))) == good


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_columns_in_any_order_and_with_company(write: Write, good: Bars, delimiter: str) -> None:
    lines = ["volume,trades,close,low,high,open,adj close,time"]
    for time, row in zip(hours("%Y-%m-%dT%H:%MZ"), PRICES, strict=True):
        o, h, low, c, v = row.split(",")
        lines.append(f"{v},7,{c},{low},{h},{o},55,{time}")
    assert read(write("\n".join(lines).replace(",", delimiter))) == good


def test_columns_can_be_named(write: Write, good: Bars) -> None:
    text = csv(hours("%Y-%m-%d %H:%M"), header="when,open,high,low,close,amount")
    assert read(write(text), FileFormat.parse("timestamp=when,volume=amount")) == good


def test_a_source_without_volume_says_so(write: Write, good: Bars) -> None:
    text = csv(hours("%Y-%m-%d %H:%M"), header="time,open,high,low,close,spread")
    with pytest.raises(ImportRefused, match=r"expected one volume column.*volume=none"):
        read(write(text))
    assert not read(write(text), FileFormat.parse("volume=none")).volume.any()


def test_a_file_without_a_header_needs_the_names_in_order(write: Write, good: Bars) -> None:
    text = "\n".join(f"{EPOCH * 1000 + 3_600_000 * i},{row},ignored" for i, row in enumerate(PRICES))
    with pytest.raises(ImportRefused, match=r"the first line holds values.*--columns timestamp,open"):
        read(write(text.replace(",ignored", "")))
    assert read(write(text), FileFormat.parse("timestamp,open,high,low,close,volume,-")) == good


def test_local_times_need_their_zone(write: Write, good: Bars) -> None:
    """2021-03-04 05:00 UTC is midnight in New York."""
    times = [f"2021-03-04 0{i}:00" for i in range(4)]
    assert read(write(csv(times)), FileFormat.parse(None, timezone="America/New_York")) == good


def test_a_local_hour_that_happens_twice_is_refused(write: Write) -> None:
    times = ["2021-11-07 00:00", "2021-11-07 01:00", "2021-11-07 02:00", "2021-11-07 03:00"]
    with pytest.raises(ImportRefused, match="local time in America/New_York is not one instant"):
        read(write(csv(times)), FileFormat.parse(None, timezone="America/New_York"))


GOOD_TIMES = hours("%Y-%m-%dT%H:%M:%SZ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(csv(GOOD_TIMES, header="a,b,c,d,e,f"), "expected one timestamp column, found none", id="columns"),
        pytest.param(csv(GOOD_TIMES, header="time,date,h,l,c,v"), "found several: time, date", id="two times"),
        pytest.param(csv(GOOD_TIMES, header="time,open,open,l,c,v"), "the header repeats open", id="repeated name"),
        pytest.param(
            csv([*GOOD_TIMES[:2], "2021-03-04T07:00:00", GOOD_TIMES[3]]),
            r"row 3: time '2021-03-04T07:00:00' with no time zone after rows with a time zone",
            id="zone lost",
        ),
        pytest.param(
            csv(["2021-03-04 05:00", "2021-03-04 06:00", *GOOD_TIMES[2:]]),
            r"row 3: time '2021-03-04T07:00:00Z' with a time zone after rows with no time zone",
            id="zone found",
        ),
        pytest.param(
            csv([*GOOD_TIMES[:3], "yesterdayZ"]), r"row 4: time 'yesterdayZ', expected ISO 8601", id="no time"
        ),
        pytest.param(
            csv(["04/03/2021 05:00", "04/03/2021 06:00", "04/03/2021 07:00", "04/03/2021 08:00"]),
            r"row 1: time '04/03/2021 05:00', expected ISO 8601",
            id="day or month first",
        ),
        pytest.param(
            csv([str(EPOCH), str(EPOCH + 3600), str((EPOCH + 7200) * 1000), str(EPOCH + 10800)]),
            r"row 3: time 1614841200000, expected epoch seconds, like the rows before",
            id="seconds, then milliseconds",
        ),
        pytest.param(csv(["1", "2", "3", "4"]), "is no epoch time", id="counting"),
        pytest.param(csv([*GOOD_TIMES[:2], "", GOOD_TIMES[3]]), "row 3: no time", id="time missing"),
        pytest.param(
            csv(GOOD_TIMES, prices=[*PRICES[:2], "102,104,abc,103,0", PRICES[3]]),
            r"row 3: low is 'abc', expected a number",
            id="text in numbers",
        ),
        pytest.param(
            csv(GOOD_TIMES, prices=[*PRICES[:2], '"1,002",104,100,103,0', PRICES[3]]),
            r"row 3: open is '1,002', expected a number such as 1234.5 \(no thousands",
            id="thousands separators",
        ),
        pytest.param(
            csv(GOOD_TIMES, prices=[*PRICES[:3], "103,105,101,,5"]), "row 4: close is empty", id="number missing"
        ),
        pytest.param(csv(GOOD_TIMES, prices=[*PRICES[:3], "103,105,101,nan,5"]), r"finite.*row 3 \(", id="nan"),
        pytest.param(csv(GOOD_TIMES, prices=[*PRICES[:3], "103,105"]), "not readable as CSV", id="short row"),
        pytest.param(csv([GOOD_TIMES[0], *GOOD_TIMES[:3]]), r"occurs once.*row 1 .*With --sort", id="duplicate rows"),
        pytest.param(csv(GOOD_TIMES[::-1]), r"timestamps increase.*row 1 .*With --sort", id="unsorted"),
        pytest.param(
            csv(hours("%Y-%m-%dT%H:30Z")), r"grid.*2021-03-04T05:30Z.*Is the file really 1h\?", id="off the grid"
        ),
        pytest.param(csv(GOOD_TIMES[:0], prices=[]), "no rows", id="no rows"),
        pytest.param("", "empty", id="empty file"),
    ],
)
def test_what_is_doubtful_is_refused_with_row_and_reason(write: Write, text: str, message: str) -> None:
    with pytest.raises(DataQualityError, match=message):
        read(write(text))


def test_the_wrong_timeframe_is_noticed(write: Write) -> None:
    with pytest.raises(ImportRefused, match=r"no two bars are 1m apart, the smallest step is 1h.*--timeframe 1h\?"):
        read(write(csv(GOOD_TIMES)), key=DatasetKey("test", "X", Timeframe.parse("1m")))


def test_sort_orders_rows_and_drops_exact_repetitions(write: Write, good: Bars) -> None:
    lines = csv(GOOD_TIMES).splitlines()
    shuffled = [lines[0], lines[4], lines[2], lines[2], lines[1], lines[3], lines[2]]
    reader = FileReader(write("\n".join(shuffled)), KEY, FileFormat(sort=True))
    assert concatenate(list(reader.blocks())) == good
    assert reader.repeated_rows == 2


def test_sort_does_not_choose_between_two_versions_of_a_bar(write: Write) -> None:
    lines = csv(GOOD_TIMES).splitlines()
    other = lines[2].replace("102,5", "102,6")
    with pytest.raises(DataQualityError, match="each timestamp occurs once"):
        read(write("\n".join([*lines, other])), FileFormat(sort=True))


@pytest.mark.parametrize("columns", ["when=time", "open=", "timestamp,open,high", "timestamp,open,high,low,close,vol"])
def test_a_wrong_columns_option_is_refused(columns: str) -> None:
    with pytest.raises(ValueError, match="--columns"):
        FileFormat.parse(columns)


def test_a_missing_or_unreadable_file_is_refused(tmp_path: Path, write: Write) -> None:
    with pytest.raises(ImportRefused, match="no such file"):
        read(tmp_path / "nothing.csv")
    broken = tmp_path / "bars.parquet"
    broken.write_bytes(b"not Parquet")
    with pytest.raises(ImportRefused, match="not readable as Parquet"):
        read(broken)
    binary = tmp_path / "binary.csv"
    binary.write_bytes(bytes(range(256)) * 10)
    with pytest.raises(ImportRefused, match="not UTF-8"):
        read(binary)


@pytest.mark.parametrize(
    "prepare",
    [
        pytest.param(lambda frame: frame, id="index"),
        pytest.param(lambda frame: frame.reset_index(), id="column"),
        pytest.param(lambda frame: frame.set_axis(frame.index.astype("int64")).rename_axis("time"), id="epoch"),
        pytest.param(lambda frame: frame.tz_localize(None), id="naive"),
        pytest.param(lambda frame: frame.tz_convert("Asia/Tokyo"), id="other zone"),
        pytest.param(lambda frame: frame.astype({"volume": "int64"}), id="whole numbers"),
        pytest.param(lambda frame: frame.rename_axis("Date").rename(columns=str.title), id="names"),
    ],
)
def test_parquet_in_many_shapes_is_the_same_bars(
    tmp_path: Path, good: Bars, prepare: Callable[[pd.DataFrame], pd.DataFrame]
) -> None:
    path = tmp_path / "bars.parquet"
    prepare(good.to_frame()).to_parquet(path)
    assert read(path) == good


def test_a_double_survives_the_text(write: Write) -> None:
    """Seventeen digits in, the same bits out; over several blocks of the file."""
    bars = martingale(150_000, seed=4, timeframe="1m")
    path = write("")
    bars.to_frame().to_csv(path)
    key = DatasetKey(bars.venue, bars.symbol, bars.timeframe)
    blocks = list(FileReader(path, key).blocks())
    assert len(blocks) > 1
    assert concatenate(blocks) == bars


def test_a_refusal_in_a_late_block_still_names_the_row(write: Write) -> None:
    bars = martingale(150_000, seed=4, timeframe="1m")
    path = write("")
    bars.to_frame().to_csv(path)
    lines = path.read_text().splitlines()
    lines[140_001] = lines[140_001].replace(",", ",x", 1)
    path.write_text("\n".join(lines))
    with pytest.raises(ImportRefused, match=r"row 140001: open is 'x"):
        read(path, key=DatasetKey(bars.venue, bars.symbol, bars.timeframe))


def test_inspect_counts_what_blocks_would_refuse(write: Write) -> None:
    report = FileReader(write(csv([*GOOD_TIMES[:3], GOOD_TIMES[2]])), KEY).inspect()
    assert (report.bars, report.duplicates, report.ok) == (4, 1, False)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("BTCUSDT_1h.parquet", ("BTCUSDT", HOUR)),
        ("BTC-USD_1h_2023.csv", ("BTC-USD", HOUR)),
        ("prices.csv", None),
        ("BTC_prices.csv", None),
        ("_1h.csv", None),
    ],
)
def test_a_file_name_may_tell_symbol_and_timeframe(name: str, expected: tuple[str, Timeframe] | None) -> None:
    assert dataset_of_file_name(Path(name)) == expected
