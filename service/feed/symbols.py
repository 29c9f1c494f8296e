"""What an exchange calls a market that the experiment spells its own way."""

# Longest first, so that BTCUSDT is not read as BTCUSD + T.
_QUOTES = ("FDUSD", "USDT", "USDC", "BUSD", "TUSD", "USD", "EUR", "GBP", "JPY", "DAI", "BTC", "ETH", "BNB")
_SEPARATORS = "-_"


def exchange_symbol(symbol: str) -> str:
    """ccxt's spelling: BTCUSDT, btc-usdt and BTC/USDT are all BTC/USDT; a settlement part (":USDT") stays.

    Raises ValueError for a name that says no base and quote.
    """
    name = symbol.upper()
    if "/" in name:
        return name
    for separator in _SEPARATORS:
        if separator in name:
            base, _, quote = name.partition(separator)
            break
    else:
        quote = next((known for known in _QUOTES if name.endswith(known)), "")
        base = name.removesuffix(quote)
    if base and quote:
        return f"{base}/{quote}"
    raise ValueError(
        f"{symbol}: expected a market of an exchange, such as BTC/USDT or BTCUSDT, found no quote currency in it. Give "
        f"--symbol BTC/USDT, or trade stored bars with --feed replay"
    )
