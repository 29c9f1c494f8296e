"""The short cut reads what the strict reader reads, or declines."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.bar_table import BarTable, cut_table
from service.decisions import read_request
from service.errors import InvalidRequest
from service.schemas import ActRequest
from service.wire import parse

HEAD = b'{"symbol":"SP500","timeframe":"1d","position":0.5,"bars":'


def body_of(number: str) -> bytes:
    return HEAD + b"[[86400000," + number.encode() + b",1,1,1,1]]}"


def reading(body: bytes, strictly: bool) -> tuple[Any, ...]:
    """What a body says, or what is wrong with it, bit for bit."""
    try:
        request, table = (parse(ActRequest, body), None) if strictly else read_request(body)
    except InvalidRequest as error:
        return ("refused", error.detail)
    if table is None:
        table = BarTable.from_rows(request.bars)
    fields = request.model_dump(exclude={"bars"})
    return (fields, request.model_fields_set, table.timestamp.tolist(), table.values.tobytes())


def assert_same_reading(body: bytes) -> None:
    assert reading(body, strictly=False) == reading(body, strictly=True)


def test_bars_as_python_writes_them_take_the_short_cut(body: dict[str, Any]) -> None:
    for text in (json.dumps(body), json.dumps(body, separators=(",", ":")), json.dumps(body, indent=1)):
        found = cut_table(text.encode())
        assert found is not None
        head, table = found
        assert json.loads(head) == {**body, "bars": None}
        assert table.timestamp.tolist() == [row[0] for row in body["bars"]]
        assert table.values.T.tolist() == [row[1:] for row in body["bars"]]
        assert_same_reading(text.encode())


# --- numbers ---------------------------------------------------------------------------------------------------------

digits = st.text("0123456789", min_size=1, max_size=21)
numbers = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(1e-8, 1e8).map(repr),
    st.floats(1e-8, 1e8).map(lambda x: f"{x:.20f}"),
    st.integers(-(10**21), 10**21).map(str),
    st.builds(lambda a, b: f"{a}.{b}", digits, digits),
    st.builds(lambda a, b, e: f"{a}.{b}e{e}", digits, digits, st.integers(-30, 30)),
    # Next to the middle between two doubles, where rounding is hardest.
    st.builds(lambda m, k: f"{(2 * m + 1) * 2**k}", st.integers(2**52, 2**53 - 1), st.integers(0, 9)),
    st.builds(
        lambda m, k, e: f"{(2 * m + 1) * 5**k * 10 ** max(0, e)}e-{k + max(0, e)}",
        st.integers(2**52, 2**53 - 1), st.integers(1, 3), st.integers(0, 1),
    ),
)  # fmt: skip


@settings(max_examples=1500, deadline=None)
@given(numbers)
@example("9007199254740993")  # exactly in the middle: to the even one
@example("9007199254740993.0")
@example("900719925474099.3")
@example("1286.3699951171875")
@example("0.30000000000000004")
@example("-0")
@example("-0.0")
@example("1e22")
@example("1E+5")
@example("123456789012345678e4")
def test_a_number_is_read_as_the_nearest_double_or_not_at_all(number: str) -> None:
    found = cut_table(body_of(number))
    if found is not None:
        assert found[1].values[0, 0].hex() == float(number).hex()
    assert_same_reading(body_of(number))


def test_numbers_of_up_to_nineteen_digits_hardly_ever_decline() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([10.0 ** rng.uniform(-5.0, 16.0, 2000), rng.uniform(0.0, 1e6, 2000)])
    assert all(cut_table(body_of(repr(float(value)))) for value in values)


@pytest.mark.parametrize(
    "number",
    ["", "-", "01", "00", "1.", ".5", "1.e5", "1e", "1e+", "+1", "1_0", "0x1", "NaN", "Infinity", "-Infinity", "1e999",
     "null", "true", '"1"', "[1]", "{}", "1 2", "1" * 400, "\u0661"],
)  # fmt: skip
def test_what_is_no_number_of_json_is_never_read(number: str) -> None:
    assert cut_table(body_of(number)) is None
    assert_same_reading(body_of(number))


@pytest.mark.parametrize("timestamp", ["-1", "1.0", "1e3", "253402300800000", "9" * 19, "true", '"1"', "-0"])
def test_a_timestamp_that_is_no_whole_number_of_milliseconds_is_left_to_the_strict_reader(timestamp: str) -> None:
    body = HEAD + b"[[" + timestamp.encode() + b",1,1,1,1,1]]}"
    assert cut_table(body) is None
    assert_same_reading(body)


# --- the body around the bars ----------------------------------------------------------------------------------------

ROW = b"[86400000,1,1,1,1,1]"
TABLE = b"[" + ROW + b"]"


@pytest.mark.parametrize(
    "body",
    [
        HEAD + TABLE + b"}",
        HEAD + b" \n[ " + ROW + b"\t,\r" + ROW + b" ] }",
        HEAD + b"[]}",
        HEAD + b"[[]]}",
        HEAD + b"[[1,1,1,1,1]]}",
        HEAD + b"[[1,1,1,1,1,1,1]]}",
        HEAD + b"[" + ROW + b",]}",
        HEAD + b"[" + ROW + ROW + b"]}",
        HEAD + b"[" + ROW,
        HEAD + b"[[1",
        HEAD + b"[[1,1,1,1,1,1]",
        HEAD + TABLE,
        HEAD + TABLE + b"}}",
        HEAD + TABLE + b',"bars":' + TABLE + b"}",  # twice
        HEAD + TABLE + b',"b\\u0061rs":' + TABLE + b"}",  # the same name, spelt otherwise
        HEAD.replace(b'"bars"', b'"b\\u0061rs"') + b"null" + b',"bars":' + TABLE + b"}",
        HEAD + TABLE + b',"b\\u0061rs":null}',
        HEAD + b'null,"account":{"bars":' + TABLE + b"}}",
        b'{"symbol":"bars","timeframe":"1d","position":0.5}',
        b'{"symbol":"\\"bars","timeframe":"1d","position":0.5}',
        b'{"symbol":"bars":' + TABLE + b"}",
        b'{"\\"bars":' + TABLE + b"}",
        b'{"bars":' + TABLE + b"}",
        HEAD.replace(b"0.5", b"NaN") + TABLE + b"}",
        HEAD.replace(b"SP500", b"\xff") + TABLE + b"}",
        b"\xef\xbb\xbf" + HEAD + TABLE + b"}",
        HEAD.replace(b"0.5", b"[" * 100_000) + TABLE + b"}",
        b"",
        b'"bars"',
        b'"bars":[[1',
        b'"bars":[[1,1,1,1,1,9',
    ],
)
def test_both_readers_say_the_same_of_any_body(body: bytes) -> None:
    assert_same_reading(body)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_body_that_was_tampered_with_reads_the_same_both_ways(data: st.DataObject) -> None:
    body = bytearray(HEAD + b"[" + ROW + b", " + ROW.replace(b"1,1,", b"1.5e0,0.25,") + b"]}")
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(body) - 1))
        body[place : place + data.draw(st.integers(0, 2))] = data.draw(
            st.sampled_from(
                [b"", b"[", b"]", b",", b"1", b"0", b".", b"e", b"-", b'"', b" ", b"{", b"}", b"\xff", b":"]
            )
        )
    assert_same_reading(bytes(body))
