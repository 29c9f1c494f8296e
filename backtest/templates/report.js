"use strict";
(() => {
  // Figures name colours by role; the roles are resolved here for the theme in force. Okabe-Ito, lightened for dark.
  const THEMES = {
    light: {
      page: "#ffffff", ink: "#1b1f24", soft: "#57606a", grid: "#e4e8ec", muted: "#8a939c",
      policy: "#0072b2", policyBand: "rgba(0,114,178,0.18)", market: "#d98200", rule: "#009e73", prior: "#b5588f",
      up: "#0072b2", down: "#d55e00", buy: "#005a8c", sell: "#b34700",
      diverging: [[0, "#d55e00"], [0.5, "#f7f7f7"], [1, "#0072b2"]],
    },
    dark: {
      page: "#14171a", ink: "#e8eaed", soft: "#a3abb3", grid: "#2b3036", muted: "#7d868e",
      policy: "#5cb8ff", policyBand: "rgba(92,184,255,0.22)", market: "#f0a830", rule: "#37c695", prior: "#e08fc0",
      up: "#5cb8ff", down: "#ff8c42", buy: "#a5d8ff", sell: "#ffbd8a",
      diverging: [[0, "#c65400"], [0.5, "#23282d"], [1, "#1f7fc0"]],
    },
  };
  const COLOUR_KEYS = new Set(["color", "fillcolor", "colorscale"]);
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const root = document.documentElement;
  const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");
  let theme = prefersDark.matches ? "dark" : "light";

  const paint = (node, key) => {
    if (typeof node === "string") return COLOUR_KEYS.has(key) ? (THEMES[theme][node] ?? node) : node;
    if (Array.isArray(node)) return COLOUR_KEYS.has(key) ? node.map((item) => paint(item, key)) : node.map((item) => paint(item, null));
    if (node !== null && typeof node === "object") {
      return Object.fromEntries(Object.entries(node).map(([name, value]) => [name, paint(value, name)]));
    }
    return node;
  };

  const narrow = () => window.innerWidth < 640;

  const axis = (given, colours) => ({
    gridcolor: colours.grid, separatethousands: true, exponentformat: "none", zerolinecolor: colours.muted, zerolinewidth: 1, linecolor: colours.grid, automargin: true, ...given,
  });

  const complete = (figure) => {
    const colours = THEMES[theme];
    const layout = paint(figure.layout, null);
    const full = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: figure.data.length > 1,
      font: { family: getComputedStyle(document.body).fontFamily, size: narrow() ? 11 : 13, color: colours.ink },
      hoverlabel: { bgcolor: colours.page, bordercolor: colours.muted, font: { color: colours.ink } },
      dragmode: narrow() ? false : "zoom",
      ...layout,
      margin: { l: 8, r: 8, t: 12, b: 8, ...(layout.margin ?? {}) },
    };
    for (const name of ["xaxis", "yaxis", "yaxis2", "yaxis3", "yaxis4"]) {
      if (name in full || name === "xaxis" || name === "yaxis") full[name] = axis(full[name] ?? {}, colours);
    }
    if (narrow() && full.yaxis.title && full.yaxis2) {
      for (const name of ["yaxis", "yaxis2", "yaxis3", "yaxis4"]) full[name].title = { ...full[name].title, font: { size: 10 } };
    }
    const data = paint(figure.data, null);
    if (narrow()) {
      for (const trace of data.filter((one) => one.type === "heatmap")) {
        trace.textfont = { size: 9 };
        trace.text = trace.text.map((row) => row.map((cell) => cell.replace("%", "")));
      }
    }
    return { data, layout: full };
  };

  const config = { responsive: true, displaylogo: false, displayModeBar: false };

  const draw = async () => {
    root.dataset.theme = theme;
    const jobs = Object.entries(figures).map(([identifier, figure]) => {
      const { data, layout } = complete(figure);
      if (identifier === "overview") layout.yaxis.type = document.getElementById("log").checked ? "log" : "linear";
      return Plotly.react(`chart-${identifier}`, data, layout, config);
    });
    await Promise.all(jobs);
    root.dataset.drawn = String(jobs.length);
  };

  document.getElementById("log")?.addEventListener("change", (event) => {
    Plotly.relayout("chart-overview", { "yaxis.type": event.target.checked ? "log" : "linear", "yaxis.autorange": true });
  });
  document.getElementById("theme").addEventListener("click", () => {
    theme = theme === "dark" ? "light" : "dark";
    draw();
  });
  prefersDark.addEventListener("change", (event) => {
    theme = event.matches ? "dark" : "light";
    draw();
  });
  // A chart follows its box, not only the window: a scroll bar, a print preview or a phone turned round changes it too.
  const boxes = new ResizeObserver((entries) => {
    for (const { target } of entries) if (target.classList.contains("js-plotly-plot")) Plotly.Plots.resize(target);
  });
  document.querySelectorAll(".plot").forEach((box) => boxes.observe(box));
  let printedFrom = null;
  window.addEventListener("beforeprint", () => { printedFrom = theme; theme = "light"; draw(); });
  window.addEventListener("afterprint", () => { theme = printedFrom ?? theme; draw(); });
  draw();
})();
