import subprocess
import sys

import pytest

from data.quality import format_time
from data.samples import SAMPLES, load_sample


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_is_twenty_years_of_trading_days(name: str) -> None:
    bars = load_sample(name)
    assert (len(bars), str(bars.timeframe), bars.symbol, bars.venue) == (5031, "1d", name.upper(), "sample")
    assert format_time(int(bars.timestamp[0])) == "1999-01-04T00:00Z"
    assert format_time(int(bars.timestamp[-1])) == "2018-12-31T00:00Z"


def test_the_sp500_has_its_published_levels() -> None:
    """First bar and the low close of the financial crisis, as published for ^GSPC."""
    bars = load_sample("sp500")
    first = (bars.open[0], bars.high[0], bars.low[0], bars.close[0], bars.volume[0])
    assert first == pytest.approx((1229.23, 1248.81, 1219.10, 1228.10, 877e6), abs=0.01)
    crisis = bars.between("2009-03-09", "2009-03-10")
    assert crisis.close[0] == pytest.approx(676.53, abs=0.01)


def test_an_unknown_sample_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="sp500, nasdaq"):
        load_sample("dax")


def test_the_package_and_its_commands_do_not_import_arch_ccxt_or_ta() -> None:
    """They cost seconds to import, and only those who use them should wait."""
    code = "import sys, data.__main__; print([m for m in ('arch', 'ccxt', 'ta', 'torch') if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
