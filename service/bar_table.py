"""The bars of a request read straight from its bytes into columns.

Bars are 98% of a request's bytes. As Python objects they are 320 tuples of 1,920 numbers, made to be copied into arrays
and thrown away, and that was the largest single cost of a decision. Here a compiled reader fills the arrays itself.

It is a short cut, not a second definition: whatever is unusual (a number too long to be rounded with certainty, a key
that occurs twice, anything that is not six numbers in a row) it declines, and the strict reader of `service.schemas`
decides alone. What it accepts, it reads exactly as that one does (tests/service/test_bar_table.py).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from data.bars import VALUE_COLUMNS

_KEY = b'"bars"'
_COLUMNS = len(VALUE_COLUMNS)
_LATEST_MS = np.uint64(253_402_300_799_999)  # the last millisecond of the year 9999, as in the schema

# 10^0 .. 10^22: the powers of ten that a double holds exactly.
_POWERS = np.array([10.0**k for k in range(23)])
_MOST_DIGITS = 19  # always fit in 64 bits
_EXACT = np.uint64(2**53)  # whole numbers up to here are doubles


class BarTable(NamedTuple):
    """timestamp: [N] int64, epoch ms. values: [5, N] float64, a row each of open, high, low, close and volume."""

    timestamp: NDArray[np.int64]
    values: NDArray[np.float64]

    @classmethod
    def from_rows(cls, rows: Sequence[tuple[float, ...]]) -> "BarTable":
        """Of rows [N] that the schema has checked. Timestamps are under 2^53, so exact in a float64."""
        table = np.array(rows, np.float64).reshape(-1, 1 + _COLUMNS).T
        return cls(table[0].astype(np.int64), np.ascontiguousarray(table[1:]))


def cut_table(body: bytes) -> tuple[bytes, BarTable] | None:
    """The body with its bars replaced by null, and the bars; None where this reader declines."""
    # Without a backslash a string cannot hold a quotation mark, nor a key be spelt in two ways: what is found is "bars"
    # itself, and the reader wants a colon behind it, so it is a key.
    at = body.find(_KEY)
    if at < 0 or body.find(_KEY, at + 1) >= 0 or b"\\" in body:
        return None
    begin = at + len(_KEY)
    capacity = body.count(b"]", begin)
    timestamp, values = np.empty(capacity, np.int64), np.empty((_COLUMNS, capacity))
    rows, end = _read(np.frombuffer(body, np.uint8), begin, timestamp, values, _POWERS)
    if rows == 0:
        return None
    columns = values if rows == capacity else np.ascontiguousarray(values[:, :rows])
    return body[:begin] + b":null" + body[end:], BarTable(timestamp[:rows], columns)


def warm_up() -> None:
    """Compile the reader, or load it from the cache, now rather than in the first request."""
    cut_table(b'{"bars":[[0,1,1,1,1,1]]}')


@njit(inline="always")
def _skip(text: Any, i: int) -> int:
    """The next place that is not white space."""
    while i < text.size and (text[i] == 32 or text[i] == 10 or text[i] == 13 or text[i] == 9):
        i += 1
    return i


@njit
def _quotient(mantissa: Any, power: float) -> tuple[float, bool]:
    """mantissa / power rounded to the nearest double, and whether that is certain.

    mantissa: uint64. power: 10^0 to 10^22.

    The quotient of the upper 53 bits, corrected by its exact remainder (Dekker 1971). The correction is a few units in
    the last place at most and good to 2^-50 of itself, so the sum rounds as the true quotient does, unless that lies
    next to the middle between two doubles.
    """
    low = mantissa & np.uint64(0x7FF)
    high, rest = float(mantissa - low), float(low)
    quotient = high / power
    # quotient · power as an exact sum of two doubles, from halves of 26 bits (Veltkamp's splitting).
    split = 134217729.0
    q1 = quotient * split
    q_high = q1 - (q1 - quotient)
    q_low = quotient - q_high
    p1 = power * split
    p_high = p1 - (p1 - power)
    p_low = power - p_high
    product = quotient * power
    error = ((q_high * p_high - product) + q_high * p_low + q_low * p_high) + q_low * p_low
    correction = (((high - product) - error) + rest) / power
    total = quotient + correction
    lost = correction - (total - quotient)
    return total, total + lost * 1.000001 == total


@njit(cache=True, nogil=True)
def _read(text: Any, i: int, timestamp: Any, values: Any, powers: Any) -> tuple[int, int]:
    """Read `: [[timestamp, five numbers], …]` from place i on. Returns the number of rows and the place after them, or
    (0, 0) to decline."""
    size = text.size
    if 48 <= text[size - 1] <= 57:
        return 0, 0  # so that a run of digits ends before the text does
    i = _skip(text, i)
    if i >= size or text[i] != 58:  # :
        return 0, 0
    i = _skip(text, i + 1)
    if i >= size or text[i] != 91:  # [
        return 0, 0
    i = _skip(text, i + 1)
    rows = 0
    while True:
        if i >= size or text[i] != 91 or rows == timestamp.size:
            return 0, 0
        i += 1
        for column in range(6):
            i = _skip(text, i)
            negative = i < size and text[i] == 45  # -
            if negative:
                i += 1
            if i >= size:
                return 0, 0
            first = i
            mantissa = np.uint64(0)
            digit = np.uint64(text[i]) - np.uint64(48)
            while digit < 10:
                mantissa = mantissa * np.uint64(10) + digit
                i += 1
                digit = np.uint64(text[i]) - np.uint64(48)
            digits = i - first
            if digits == 0 or (digits > 1 and text[first] == 48):  # none, or a leading zero
                return 0, 0
            integer = True
            exponent = 0
            if text[i] == 46:  # .
                integer = False
                i += 1
                first = i
                if mantissa == 0:
                    while i < size and text[i] == 48:  # zeros behind the point of a number below 1 say only how small
                        i += 1
                        digits -= 1
                if i >= size:
                    return 0, 0
                digit = np.uint64(text[i]) - np.uint64(48)
                while digit < 10:
                    mantissa = mantissa * np.uint64(10) + digit
                    i += 1
                    digit = np.uint64(text[i]) - np.uint64(48)
                exponent = first - i
                digits += i - first
                if i == first:
                    return 0, 0
            if digits > _MOST_DIGITS:
                return 0, 0
            if text[i] == 101 or text[i] == 69:  # e E
                integer = False
                i += 1
                minus = i < size and text[i] == 45
                if i < size and (text[i] == 45 or text[i] == 43):
                    i += 1
                first = i
                power = 0
                while i < size and 48 <= text[i] <= 57 and i - first < 4:
                    power = power * 10 + (text[i] - 48)
                    i += 1
                if i == first:
                    return 0, 0
                exponent += -power if minus else power
            if column == 0:
                if negative or not integer or mantissa > _LATEST_MS:
                    return 0, 0
                timestamp[rows] = np.int64(mantissa)
            else:
                if exponent < -22 or exponent > 22 or (negative and mantissa == 0):  # an integer -0 has no sign
                    return 0, 0
                if mantissa <= _EXACT:
                    # Both are exact, so one operation rounds once (Clinger 1990).
                    number = float(mantissa)
                    number = number * powers[exponent] if exponent >= 0 else number / powers[-exponent]
                elif exponent <= 0:
                    number, certain = _quotient(mantissa, powers[-exponent])
                    if not certain:
                        return 0, 0
                else:
                    return 0, 0
                values[column - 1, rows] = -number if negative else number
            i = _skip(text, i)
            if i >= size or text[i] != (93 if column == 5 else 44):  # ] or ,
                return 0, 0
            i += 1
        rows += 1
        i = _skip(text, i)
        if i >= size:
            return 0, 0
        if text[i] == 93:
            return rows, i + 1
        if text[i] != 44:
            return 0, 0
        i = _skip(text, i + 1)
