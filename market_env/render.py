"""Pictures of an episode: candles with fills, equity and drawdown.

`MarketRenderer` remembers the steps of the running episode and draws the last ones, as an image (Pillow) or as text.
The image is also a usable observation: same size, same place for everything, colours that stay apart in grey.
"""

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from market_env.market import Market

WIDTH, HEIGHT = 960, 600
BARS_SHOWN = 96

Colour = tuple[int, int, int]
# Okabe and Ito's palette: told apart with every common colour blindness. Up and down also differ in fill.
_UP: Colour = (0, 114, 178)
_DOWN: Colour = (213, 94, 0)
_LONG: Colour = (0, 158, 115)
_SHORT: Colour = (204, 121, 167)
_EQUITY: Colour = (0, 0, 0)
_DRAWDOWN: Colour = (230, 159, 0)
_PAPER: Colour = (255, 255, 255)
_GRID: Colour = (232, 232, 232)
_TEXT: Colour = (60, 60, 60)
_BLOCKS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class RenderStep:
    """What a picture needs to know of one step."""

    t: int
    equity: float
    drawdown: float
    exposure: float
    target: float
    qty_filled: float
    fill_price: float
    liquidated: bool

    @classmethod
    def from_info(cls, info: Mapping[str, Any]) -> Self:
        """The fields of an `info` dictionary."""
        return cls(
            t=info["t"],
            equity=info["equity"],
            drawdown=info["drawdown"],
            exposure=info["exposure"],
            target=info["target"],
            qty_filled=info["qty_filled"],
            fill_price=info["fill_price"],
            liquidated=info["liquidated"],
        )


@dataclass(frozen=True)
class _Panel:
    """A rectangle with a value axis. Pixel y grows downwards."""

    left: int
    top: int
    right: int
    bottom: int
    low: float
    high: float

    def y(self, value: float) -> float:
        span = self.high - self.low
        return self.bottom - (value - self.low) / span * (self.bottom - self.top)


class MarketRenderer:
    """Draws the running episode of one account."""

    def __init__(self) -> None:
        self._market: Market | None = None
        self._steps: list[RenderStep] = []
        self._font = ImageFont.load_default(size=13)
        self._title_font = ImageFont.load_default(size=17)

    def begin(self, market: Market, first: RenderStep) -> None:
        """Forget the last episode and begin one on `market`."""
        self._market = market
        self._steps = [first]

    def add(self, step: RenderStep) -> None:
        """One step further."""
        self._steps.append(step)

    # --- image -----------------------------------------------------------------------------------------------------

    def image(self) -> NDArray[np.uint8]:
        """The frame, [HEIGHT, WIDTH, 3] uint8."""
        market, steps = self._running()
        now = steps[-1].t
        bars = range(max(now - BARS_SHOWN + 1, 0), now + 1)
        shown = [step for step in steps if step.t >= bars.start]
        picture = Image.new("RGB", (WIDTH, HEIGHT), _PAPER)
        draw = ImageDraw.Draw(picture)
        left, right = 12, WIDTH - 92
        slot = (right - left) / BARS_SHOWN
        first = now - BARS_SHOWN + 1  # bars before the data begin stay blank, so that a bar keeps its size

        def x(t: int) -> float:
            return left + (t - first + 0.5) * slot

        self._title(draw, market, shown)
        prices = _Panel(
            left, 76, right, 356, *_range(market.low[bars.start : now + 1], market.high[bars.start : now + 1])
        )
        self._axis(draw, prices, "price", _price_text)
        self._candles(draw, prices, market, bars, x, slot)
        self._fills(draw, prices, shown, x)
        equity = np.array([step.equity for step in shown])
        panel = _Panel(left, 384, right, 484, *_range(equity, equity))
        self._axis(draw, panel, "equity", lambda value: f"{value:,.0f}")
        self._exposure(draw, panel, shown, x, slot)
        _line(draw, panel, [(x(step.t), step.equity) for step in shown], _EQUITY)
        drawdown = np.array([step.drawdown for step in shown])
        panel = _Panel(left, 512, right, 572, -max(float(drawdown.max()) * 1.1, 0.01), 0.0)
        self._axis(draw, panel, "drawdown", lambda value: f"{abs(value):.1%}", ticks=2)
        _area(draw, panel, [(x(step.t), -step.drawdown) for step in shown])
        self._times(draw, market, bars, x)
        return np.asarray(picture, dtype=np.uint8).copy()

    def _title(self, draw: ImageDraw.ImageDraw, market: Market, shown: list[RenderStep]) -> None:
        now = shown[-1]
        growth = now.equity / self._steps[0].equity - 1.0
        draw.text((12, 8), market.symbol, fill=_EQUITY, font=self._title_font)
        draw.text(
            (12, 34),
            f"{_time_text(market, now.t)}   close {_price_text(float(market.close[now.t]))}   "
            f"equity {now.equity:,.2f} ({growth:+.2%})   exposure {now.exposure:+.2f} (target {now.target:+.2f})   "
            f"step {len(self._steps) - 1}",
            fill=_TEXT,
            font=self._font,
        )
        legend = (("buy", _LONG), ("sell", _SHORT), ("long", _LONG), ("short", _SHORT))
        right = WIDTH - 92.0
        for name, colour in reversed(legend):
            right -= draw.textlength(name, font=self._font)
            draw.text((right, 10), name, fill=_TEXT, font=self._font)
            if name in ("buy", "sell"):
                _triangle(draw, right - 10, 13.5 if name == "buy" else 22.5, up=name == "buy", colour=colour)
            else:
                draw.rectangle((right - 14, 14, right - 4, 22), fill=_tint(colour))
            right -= 28

    def _axis(
        self, draw: ImageDraw.ImageDraw, panel: _Panel, name: str, text: Callable[[float], str], ticks: int = 4
    ) -> None:
        for value in _round_values(panel.low, panel.high, ticks):
            y = panel.y(value)
            draw.line((panel.left, y, panel.right, y), fill=_GRID)
            draw.text((panel.right + 6, y), text(value), fill=_TEXT, font=self._font, anchor="lm")
        draw.text((panel.left + 2, panel.top - 4), name, fill=_TEXT, font=self._font, anchor="ls")

    def _candles(
        self,
        draw: ImageDraw.ImageDraw,
        panel: _Panel,
        market: Market,
        bars: range,
        x: Callable[[int], float],
        slot: float,
    ) -> None:
        half = max(slot * 0.36, 1.0)
        for t in bars:
            open_, high, low, close = (float(c[t]) for c in (market.open, market.high, market.low, market.close))
            colour = _UP if close >= open_ else _DOWN
            draw.line((x(t), panel.y(high), x(t), panel.y(low)), fill=colour)
            top, bottom = panel.y(max(open_, close)), panel.y(min(open_, close))
            body = (x(t) - half, top, x(t) + half, max(bottom, top + 1))
            draw.rectangle(body, outline=colour, fill=_PAPER if close >= open_ else colour)

    def _fills(
        self, draw: ImageDraw.ImageDraw, panel: _Panel, shown: list[RenderStep], x: Callable[[int], float]
    ) -> None:
        for step in shown:
            if step.qty_filled != 0.0:
                buy = step.qty_filled > 0.0
                _triangle(draw, x(step.t), panel.y(step.fill_price), up=buy, colour=_LONG if buy else _SHORT)
            if step.liquidated:
                draw.text((x(step.t), panel.top + 4), "liquidated", fill=_DOWN, font=self._font, anchor="ma")

    def _exposure(
        self,
        draw: ImageDraw.ImageDraw,
        panel: _Panel,
        shown: list[RenderStep],
        x: Callable[[int], float],
        slot: float,
    ) -> None:
        """A band under the equity: green while long, purple while short, stronger with the size of the position."""
        for step in shown:
            if abs(step.exposure) > 1e-9:
                colour = _tint(_LONG if step.exposure > 0.0 else _SHORT, 0.25 + 0.55 * min(abs(step.exposure), 1.0))
                draw.rectangle(
                    (x(step.t) - slot / 2, panel.bottom - 7, x(step.t) + slot / 2, panel.bottom), fill=colour
                )

    def _times(self, draw: ImageDraw.ImageDraw, market: Market, bars: range, x: Callable[[int], float]) -> None:
        every = 24 * market.bar_ms  # a day of hourly bars, and as many bars of another length
        for t in bars:
            if int(market.timestamp[t]) % every == 0:
                text = _time_text(market, t).removesuffix(" 00:00")
                half = draw.textlength(text, font=self._font) / 2
                draw.line((x(t), 572, x(t), 577), fill=_TEXT)
                draw.text((max(x(t), half + 2), 579), text, fill=_TEXT, font=self._font, anchor="ma")

    # --- text ------------------------------------------------------------------------------------------------------

    def text(self) -> str:
        """The frame as a few lines of text."""
        market, steps = self._running()
        now = steps[-1]
        recent = steps[-60:]
        closes = [float(market.close[step.t]) for step in recent]
        sides = "".join("+" if step.exposure > 0 else "-" if step.exposure < 0 else "." for step in recent)
        fills = sum(step.qty_filled != 0.0 for step in steps)
        growth = now.equity / steps[0].equity - 1.0
        return "\n".join(
            [
                f"{market.symbol}  {_time_text(market, now.t)}  step {len(steps) - 1}",
                f"close    {_price_text(closes[-1]):>14}  {_sparkline(closes)}",
                f"equity   {now.equity:>14,.2f}  {_sparkline([step.equity for step in recent])}",
                f"exposure {now.exposure:>+14.2f}  {sides}",
                f"target {now.target:+.2f}  growth {growth:+.2%}  drawdown {now.drawdown:.2%}  fills {fills}"
                f"{'  LIQUIDATED' if now.liquidated else ''}",
            ]
        )

    def print(self) -> None:
        """Write the text frame to the terminal, over the last one."""
        lines = self.text()
        if sys.stdout.isatty() and len(self._steps) > 1:
            sys.stdout.write(f"\x1b[{lines.count(chr(10)) + 1}F\x1b[J")
        sys.stdout.write(lines + "\n")
        sys.stdout.flush()

    def _running(self) -> tuple[Market, list[RenderStep]]:
        if self._market is None:
            raise RuntimeError("render before the first reset; call reset first")
        return self._market, self._steps


def _range(low: NDArray[np.float64], high: NDArray[np.float64]) -> tuple[float, float]:
    """Axis limits with a margin; never empty."""
    bottom, top = float(low.min()), float(high.max())
    margin = max((top - bottom) * 0.06, abs(top) * 1e-4)
    return bottom - margin, top + margin


def _round_values(low: float, high: float, count: int) -> list[float]:
    """About `count` values from low to high that are multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((factor * power for factor in (1.0, 2.0, 5.0, 10.0)), key=lambda size: abs(size - rough))
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _line(draw: ImageDraw.ImageDraw, panel: _Panel, points: list[tuple[float, float]], colour: Colour) -> None:
    if len(points) > 1:
        draw.line([(x, panel.y(value)) for x, value in points], fill=colour, width=2, joint="curve")


def _area(draw: ImageDraw.ImageDraw, panel: _Panel, points: list[tuple[float, float]]) -> None:
    if len(points) > 1:
        outline = [(x, panel.y(value)) for x, value in points]
        draw.polygon([(outline[0][0], panel.top), *outline, (outline[-1][0], panel.top)], fill=_tint(_DRAWDOWN, 0.6))
        draw.line(outline, fill=_DRAWDOWN, width=2)


def _triangle(draw: ImageDraw.ImageDraw, x: float, y: float, *, up: bool, colour: Colour) -> None:
    """A buy points up from below its price, a sell down from above it; the tip is the price."""
    height = 9.0 if up else -9.0
    draw.polygon([(x, y), (x - 5, y + height), (x + 5, y + height)], fill=colour, outline=_EQUITY)


def _tint(colour: Colour, strength: float = 0.5) -> Colour:
    red, green, blue = (round(255 - (255 - channel) * strength) for channel in colour)
    return red, green, blue


def _price_text(price: float) -> str:
    return f"{price:,.2f}" if price >= 100.0 else f"{price:.5g}"


def _time_text(market: Market, t: int) -> str:
    when = datetime.fromtimestamp(int(market.timestamp[t]) / 1000.0, tz=UTC)
    return f"{when:%Y-%m-%d}" if market.bar_ms >= 86_400_000 else f"{when:%Y-%m-%d %H:%M}"


def _sparkline(values: list[float]) -> str:
    low, high = min(values), max(values)
    span = high - low or 1.0
    return "".join(_BLOCKS[1 + round((value - low) / span * (len(_BLOCKS) - 2))] for value in values)
