"""What is traded: the facts about one instrument that fills and statistics depend on."""

from typing import Literal, Self

from pydantic import Field

from market_env.config import Section

AssetClass = Literal["crypto", "fx", "equity", "other"]

# Half-spreads in basis points for market orders of ordinary size: design values of the fill model.
_HALF_SPREAD_BPS = {"fx": 0.3, "crypto": 1.0, "equity": 2.0, "other": 5.0}
_MINOR_HALF_SPREAD_BPS = 5.0
# Sessions per year: crypto trades every day, FX five days a week, US equities on exchange days.
_DAYS_PER_YEAR = {"crypto": 365, "fx": 260, "equity": 252, "other": 252}

_CRYPTO_MAJORS = frozenset({"BTC", "XBT", "ETH", "BNB", "SOL", "XRP", "LTC", "ADA", "DOGE"})
_STABLECOINS = ("USDT", "USDC", "BUSD", "FDUSD", "TUSD", "DAI")
_CRYPTO_QUOTES = frozenset({*_STABLECOINS, "BTC", "ETH", "USD", "EUR"})
_METALS = frozenset({"XAU", "XAG", "XPT", "XPD"})
_SEPARATORS = "/-_"
_FIAT = frozenset(
    {"USD", "EUR", "GBP", "JPY", "CHF", "AUD", "NZD", "CAD", "SEK", "NOK", "DKK", "PLN", "SGD", "HKD", "MXN", "ZAR"}
)
_EQUITY_INDICES = frozenset({"SP500", "SPX", "NASDAQ", "NDX", "DJI", "DJIA", "WILSHIRE"})
_NOT_EQUITY = frozenset({"VIX"})


class Instrument(Section):
    """One tradable instrument. Zero lot, tick or minimum means: no such rounding or limit."""

    symbol: str = Field(min_length=1, description="name; also addresses the instrument's random draws")
    asset_class: AssetClass = Field(default="other", description="chooses the defaults below")
    half_spread_bps: float | None = Field(
        default=None, ge=0.0, lt=500.0, description="half the quoted spread, bp of the price; null: by class"
    )
    lot_size: float = Field(default=0.0, ge=0.0, description="smallest quantity step, units")
    min_notional: float = Field(default=0.0, ge=0.0, description="smallest order value, quote currency")
    tick_size: float = Field(default=0.0, ge=0.0, description="smallest price step, quote currency")
    days_per_year: int | None = Field(default=None, ge=1, le=366, description="trading days per year; null: by class")

    @classmethod
    def for_symbol(cls, symbol: str) -> Self:
        """Guess the class from the symbol.

        Anything after a `:` (ccxt's settlement currency) is ignored, then, in order: two fiat codes -> fx; a code
        before a crypto quote currency (split by `/`, `-` or `_`, or joined: BTCUSDT), or a known coin -> crypto; a
        stock index, or 1 to 5 letters -> equity (taken to be large-cap); else other. Known coins have the spread of a
        crypto major. State the class and the half-spread yourself where the guess is wrong.
        """
        name = symbol.upper().split(":")[0]
        pairs = _pairs(name)
        joined = "".join(c for c in name if c not in _SEPARATORS)
        if any(base in _FIAT and quote in _FIAT for base, quote in pairs):
            return cls(symbol=symbol, asset_class="fx")
        if joined in _CRYPTO_MAJORS or any(b in _CRYPTO_MAJORS and q in _CRYPTO_QUOTES for b, q in pairs):
            return cls(symbol=symbol, asset_class="crypto")
        if any(base not in _METALS and quote in _CRYPTO_QUOTES for base, quote in pairs):
            return cls(symbol=symbol, asset_class="crypto", half_spread_bps=_MINOR_HALF_SPREAD_BPS)
        if joined in _EQUITY_INDICES or (joined.isalpha() and len(joined) <= 5 and joined not in _NOT_EQUITY):
            return cls(symbol=symbol, asset_class="equity")
        return cls(symbol=symbol, asset_class="other")

    @property
    def half_spread_fraction(self) -> float:
        """Half-spread as a fraction of the price."""
        bps = _HALF_SPREAD_BPS[self.asset_class] if self.half_spread_bps is None else self.half_spread_bps
        return bps * 1e-4

    @property
    def trading_days_per_year(self) -> int:
        """Trading days per year of this instrument's calendar."""
        return _DAYS_PER_YEAR[self.asset_class] if self.days_per_year is None else self.days_per_year


def _pairs(name: str) -> list[tuple[str, str]]:
    """Ways to read a name as base and quote: at its separator, else with a known currency at its end."""
    for separator in _SEPARATORS:
        if separator in name:
            base, quote = name.split(separator, 1)
            return [(base, quote)]
    known = (*_STABLECOINS, *sorted(_CRYPTO_MAJORS), *sorted(_FIAT))
    pairs = [(name.removesuffix(quote), quote) for quote in known if name.endswith(quote) and name != quote]
    # A joined name says little: without a stablecoin, only well-known codes count.
    return [(b, q) for b, q in pairs if q in _STABLECOINS or b in _CRYPTO_MAJORS or b in _FIAT]
