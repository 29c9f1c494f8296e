"use strict";
// What the ledger holds, as Plotly figures. Functions of data and colours; only `draw` touches the page.
const Charts = (() => {
  const iso = (ms) => new Date(ms).toISOString().slice(0, 19);  // without a zone, so that Plotly shows UTC
  const narrow = () => window.innerWidth < 600;

  const colours = () => {
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue(`--${name}`).trim();
    const names = ["card", "ink", "soft", "grid", "muted", "policy", "market", "up", "down", "band", "bad"];
    return Object.fromEntries(names.map((name) => [name, read(name)]));
  };

  const axis = (c, more = {}) => ({
    gridcolor: c.grid, linecolor: c.grid, zerolinecolor: c.muted, zerolinewidth: 1, automargin: true,
    exponentformat: "none", separatethousands: true, tickfont: { size: narrow() ? 10.5 : 12 }, ...more,
  });
  const frame = (c, more) => ({
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: c.soft },
    hoverlabel: { bgcolor: c.card, bordercolor: c.muted, font: { color: c.ink, size: 12 } },
    hovermode: "x unified", dragmode: narrow() ? false : "zoom", margin: { l: 8, r: 8, t: 8, b: 4 }, ...more,
  });
  const legend = (c) => ({ orientation: "h", x: 0, y: 1.0, yanchor: "bottom", font: { size: 12, color: c.soft }, itemclick: false, itemdoubleclick: false });

  const draw = (identifier, figure, empty) => {
    const box = document.getElementById(identifier);
    if (figure === null) {
      if (box.classList.contains("js-plotly-plot")) Plotly.purge(box);
      box.classList.add("empty");
      box.textContent = empty;
      return Promise.resolve();
    }
    if (box.classList.contains("empty")) {
      box.classList.remove("empty");
      box.textContent = "";
    }
    return Plotly.react(box, figure.data, figure.layout, { displayModeBar: false, displaylogo: false, doubleClick: "reset" });
  };

  // Candles, the fills in them, and the exposure held, on one time axis. Before the account's first mark there is no
  // exposure and no axis for it: Plotly cannot hang the time axis on one that has no curve.
  const priceChart = (bars, fills, equity, targets) => {
    if (!bars.length) return null;
    const c = colours();
    const x = bars.map((bar) => iso(bar.ts));
    const first = bars[0].ts;
    const shown = fills.filter((fill) => fill.bar_ts >= first && fill.quantity !== 0);
    const marks = (list, name, symbol, colour) => ({
      type: "scatter", mode: "markers", name, x: list.map((fill) => iso(fill.bar_ts)), y: list.map((fill) => fill.price),
      marker: { symbol, size: narrow() ? 8 : 10, color: colour, line: { color: c.card, width: 1.2 } },
      customdata: list.map((fill) => `${Words.quantity(Math.abs(fill.quantity))} at ${Words.price(fill.price)}`),
      hovertemplate: "%{customdata}",
    });
    const held = equity.filter((point) => point.ts >= first);
    const exposure = {
      type: "scatter", mode: "lines", name: "Exposure", x: held.map((point) => iso(point.ts)), y: held.map((point) => point.exposure),
      yaxis: "y2", line: { shape: "hv", width: 1.5, color: c.policy }, fill: "tozeroy", fillcolor: `rgba(${c.band}, 0.18)`,
      hovertemplate: "%{y:.0%}",
    };
    const lane = axis(c, { domain: [0, 0.2], range: [Math.min(...targets) < 0 ? -1.08 : -0.08, 1.08], tickvals: [-1, 0, 1], ticktext: ["Short", "Flat", "Long"], fixedrange: true });
    return {
      data: [
        {
          type: "candlestick", name: "Price", x, open: bars.map((bar) => bar.open), high: bars.map((bar) => bar.high),
          low: bars.map((bar) => bar.low), close: bars.map((bar) => bar.close), line: { width: 1 },
          increasing: { line: { color: c.muted }, fillcolor: c.card }, decreasing: { line: { color: c.muted }, fillcolor: c.muted },
        },
        marks(shown.filter((fill) => fill.quantity > 0), "Bought", "triangle-up", c.up),
        marks(shown.filter((fill) => fill.quantity < 0), "Sold", "triangle-down", c.down),
        ...(held.length ? [exposure] : []),
      ],
      layout: frame(c, {
        xaxis: axis(c, { type: "date", rangeslider: { visible: false }, anchor: held.length ? "y2" : "y", showgrid: false }),
        yaxis: axis(c, { domain: [held.length ? 0.27 : 0, 1] }),
        ...(held.length ? { yaxis2: lane } : {}),
        showlegend: true, legend: legend(c), margin: { l: narrow() ? 8 : 62, r: 8, t: 26, b: 4 },
      }),
    };
  };

  // Equity beside what holding from the start would be worth, and the distance from the peak.
  const equityChart = (equity) => {
    if (equity.length < 2) return null;
    const c = colours();
    const x = equity.map((point) => iso(point.ts));
    return {
      data: [
        { type: "scatter", mode: "lines", name: "Buy and hold", x, y: equity.map((point) => point.buy_and_hold_equity), line: { color: c.market, width: 1.4, dash: "dot" }, hovertemplate: "%{y:,.2f}" },
        { type: "scatter", mode: "lines", name: "Equity", x, y: equity.map((point) => point.equity), line: { color: c.policy, width: 2 }, hovertemplate: "%{y:,.2f}" },
        { type: "scatter", mode: "lines", name: "Drawdown", x, y: equity.map((point) => -point.drawdown_fraction), yaxis: "y2", line: { color: c.down, width: 1.2 }, fill: "tozeroy", fillcolor: "rgba(213, 94, 0, 0.16)", hovertemplate: "%{y:.2%}" },
      ],
      layout: frame(c, {
        xaxis: axis(c, { type: "date", anchor: "y2", showgrid: false }),
        yaxis: axis(c, { domain: [0.33, 1], tickformat: ",.0f" }),
        yaxis2: axis(c, { domain: [0, 0.25], tickformat: ".1%", nticks: 3, rangemode: "tozero", fixedrange: true }),
        showlegend: true, legend: legend(c), margin: { l: narrow() ? 8 : 62, r: 8, t: 26, b: 4 },
      }),
    };
  };

  // The futures the plan weighed: from the last close, one wedge per outcome from its 5% to its 95% quantile, the
  // darker the more probable, and a ray to its mean as wide as it is probable.
  const outlookChart = (bars, decision) => {
    const outcomes = (decision?.outlook ?? []).filter((one) => one.quantiles !== null && one.probability > 0.001);
    if (!outcomes.length) return null;
    const c = colours();
    const known = bars.filter((bar) => bar.ts <= decision.bar_ts).slice(-14);
    if (!known.length) return null;
    const close = known[known.length - 1].close;
    // Closes stand one apart, the next bar is drawn wide enough to be read.
    const now = 0;
    const end = 7;
    const ends = (one) => {
      const names = Object.keys(one.quantiles).sort((a, b) => Number(a) - Number(b));
      return [one.quantiles[names[0]], one.quantiles[names[names.length - 1]]];
    };
    const percent = (logReturn) => Math.expm1(logReturn);
    const wedges = [...outcomes].reverse().map((one) => {
      const [low, high] = ends(one);
      return {
        type: "scatter", mode: "lines", x: [now, end, end, now], y: [0, percent(high), percent(low), 0], fill: "toself",
        fillcolor: `rgba(${c.band}, ${(0.05 + 0.4 * one.probability).toFixed(3)})`, line: { width: 0 }, hoverinfo: "skip",
      };
    });
    const rays = [...outcomes].reverse().map((one) => ({
      type: "scatter", mode: "lines", x: [now, end], y: [0, percent(one.mean_return)],
      line: { color: c.policy, width: 1 + 5 * one.probability }, hoverinfo: "skip",
    }));
    const span = Math.max(...outcomes.flatMap((one) => ends(one).map((value) => Math.abs(percent(value)))), ...known.map((bar) => Math.abs(bar.close / close - 1)));
    const labels = [];
    for (const one of outcomes) {
      const y = percent(one.mean_return);
      if (one.probability >= 0.03 && labels.every((label) => Math.abs(label.y - y) > span * 0.16) && labels.length < 6) {
        labels.push({ y, text: `${Words.percent(one.probability, 0)}`, size: 12 });
      }
    }
    return {
      data: [
        { type: "scatter", mode: "lines", x: known.map((_, row) => row + 1 - known.length), y: known.map((bar) => bar.close / close - 1), line: { color: c.ink, width: 1.6 }, hoverinfo: "skip" },
        ...wedges, ...rays,
      ],
      layout: frame(c, {
        hovermode: false, dragmode: false, margin: { l: 8, r: 42, t: 6, b: 4 },
        xaxis: axis(c, { tickvals: [1 - known.length, now, end], ticktext: [`${known.length - 1} bars ago`, "now", "next bar"], showgrid: false, zeroline: true, fixedrange: true, range: [1 - known.length, end] }),
        yaxis: axis(c, { tickformat: "+.1%", nticks: 6, fixedrange: true, range: [-1.08 * span, 1.08 * span] }),
        annotations: labels.map((label) => ({ x: 1, xref: "paper", xanchor: "left", xshift: 5, y: label.y, text: label.text, showarrow: false, font: { size: label.size, color: c.ink } })),
      }),
    };
  };

  const latencyChart = (decisions) => {
    const timed = decisions.filter((one) => one.latency_ms !== null);
    if (timed.length < 2) return null;
    const c = colours();
    return {
      data: [{ type: "scatter", mode: "lines", x: timed.map((one) => iso(one.bar_ts)), y: timed.map((one) => one.latency_ms), line: { color: c.policy, width: 1.2 }, hovertemplate: "%{y:.1f} ms<extra></extra>" }],
      layout: frame(c, {
        dragmode: false, xaxis: axis(c, { type: "date", showgrid: false, fixedrange: true, nticks: 5 }),
        yaxis: axis(c, { rangemode: "tozero", nticks: 4, ticksuffix: " ms", fixedrange: true }),
      }),
    };
  };

  return { draw, priceChart, equityChart, outlookChart, latencyChart };
})();
