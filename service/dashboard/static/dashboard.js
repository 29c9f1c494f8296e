"use strict";
(() => {
  const LIST_LIMIT = { bars: 5000, equity: 5000, decisions: 500, fills: 2000, events: 300 };
  const SHOWN_ROWS = 200;
  const state = {
    session: null, status: null, clockOffset: 0,
    bars: [], equity: [], decisions: [], fills: [], events: [],
    shownBars: window.innerWidth < 600 ? 100 : 300, link: "wait", linkSince: Date.now(), trouble: null, outcomeOf: null,
  };
  const by = (id) => document.getElementById(id);
  const now = () => Date.now() + state.clockOffset;

  // --- talking to the service ---------------------------------------------------------------------------------------

  const leave = () => window.location.replace("/login");

  const ask = async (path, options = {}) => {
    const response = await fetch(path, options);
    if (response.status === 401) {
      leave();
      throw new Error("logged out");
    }
    const body = response.status === 204 ? null : await response.json();
    if (!response.ok) throw new Error(body?.detail ?? `the service answered ${response.status}`);
    return body;
  };
  const change = (method, path, body) => ask(path, {
    method,
    headers: { "content-type": "application/json", "x-csrf-token": state.session.csrf_token },
    body: body === undefined ? undefined : JSON.stringify(body),
  });

  const KEYS = { bars: "ts", equity: "ts", decisions: "id", fills: "id", events: "id" };
  const TIMES = { bars: "ts", equity: "ts", decisions: "bar_ts", fills: "bar_ts", events: "ts_ms" };

  // Rows by their key, the new ones in the place of the old, no more of them than the page keeps.
  const merge = (name, rows) => {
    const key = KEYS[name];
    const list = state[name];
    if (!rows.length) return;
    const last = list.length ? list[list.length - 1][key] : -Infinity;
    if (rows[0][key] > last) list.push(...rows);
    else {
      const all = new Map(list.map((row) => [row[key], row]));
      for (const row of rows) all.set(row[key], row);
      state[name] = [...all.values()].sort((a, b) => a[key] - b[key]);
    }
    if (state[name].length > LIST_LIMIT[name]) state[name] = state[name].slice(-LIST_LIMIT[name]);
  };

  // The news of several lists, taken in together once the last has come: whoever draws meanwhile sees all or none.
  const load = async (...names) => {
    const answers = await Promise.all(names.map((name) => {
      const list = state[name];
      const since = list.length ? `&since=${list[list.length - 1][TIMES[name]]}` : "";
      return ask(`/v1/paper/${name}?limit=${LIST_LIMIT[name]}${since}`);
    }));
    names.forEach((name, at) => merge(name, answers[at].items));
  };

  // A bar brings a decision, a mark and perhaps a fill within one transaction. Ask once for what comes together, and
  // never twice at once: a replay may close a hundred bars a second.
  let loading = false;
  let again = false;
  const refresh = async () => {
    if (loading) {
      again = true;
      return;
    }
    loading = true;
    try {
      do {
        again = false;
        await load("bars", "equity", "fills");
        render();
        await new Promise((done) => setTimeout(done, 700));
      } while (again);
    } catch (error) {
      if (state.link === "live") say("error", `The ledger could not be read: ${error.message}`);
    } finally {
      loading = false;
    }
  };

  const takeStatus = (status) => {
    const before = state.status;
    state.clockOffset = status.now_ms - Date.now();
    state.status = status;
    state.trouble = null;
    if (before && (before.run?.id ?? null) !== (status.run?.id ?? null)) {
      for (const name of ["bars", "equity", "decisions", "fills"]) state[name] = [];
      start();
      return;
    }
    renderStatus();
    if (!before || before.account?.updated_ts !== status.account?.updated_ts) refresh();
  };

  const start = async () => {
    await load("decisions", "events");
    await refresh();
    renderTables();
  };

  const listen = () => {
    const source = new EventSource("/v1/stream");
    const link = (word) => {
      if (state.link !== word) state.linkSince = Date.now();
      state.link = word;
      renderLink();
      renderLine();
    };
    source.addEventListener("open", () => link("live"));
    source.addEventListener("status", (event) => takeStatus(JSON.parse(event.data)));
    source.addEventListener("trouble", (event) => {
      state.trouble = JSON.parse(event.data).detail;
      renderLine();
    });
    source.addEventListener("decision", (event) => {
      const decision = JSON.parse(event.data);
      if (state.status?.run) merge("decisions", [decision]);
      schedule();
      refresh();
    });
    source.addEventListener("event", (event) => {
      merge("events", [JSON.parse(event.data)]);
      schedule();
    });
    source.addEventListener("error", () => {
      link("lost");
      // A refusal ends an EventSource for good: find out whether the login is over, and begin anew if it is not.
      if (source.readyState === EventSource.CLOSED) {
        setTimeout(async () => {
          try {
            await ask("/v1/session");
          } catch { /* the next try will tell */ }
          listen();
        }, 3000);
      }
    });
  };

  let scheduled = false;
  const schedule = () => {
    if (scheduled) return;
    scheduled = true;
    setTimeout(() => {
      scheduled = false;
      renderTables();
      renderDecision();
    }, 250);
  };

  // --- showing ------------------------------------------------------------------------------------------------------

  const put = (id, text) => {
    const node = by(id);
    if (node.textContent !== text) node.textContent = text;
  };
  const tone = (id, value) => {
    by(id).classList.toggle("gain", value > 0);
    by(id).classList.toggle("loss", value < 0);
  };
  const cell = (text, classes = "") => {
    const node = document.createElement("td");
    if (classes) node.className = classes;
    node.textContent = text;
    return node;
  };
  const row = (cells, classes = "") => {
    const node = document.createElement("tr");
    if (classes) node.className = classes;
    node.append(...cells);
    return node;
  };
  const fillBody = (id, rows, columns, empty) => {
    const body = by(id);
    if (rows.length) {
      body.replaceChildren(...rows);
      return;
    }
    const nothing = cell(empty, "nothing");
    nothing.colSpan = columns;
    body.replaceChildren(row([nothing]));
  };

  const say = (severity, text) => {
    by("line").dataset.severity = severity;
    put("line-text", text);
  };

  const renderLink = () => {
    by("link").querySelector(".dot").dataset.link = state.link;
    put("link-word", { live: "live", lost: "lost", wait: "connecting" }[state.link]);
  };

  const renderLine = () => {
    const status = state.status;
    if (state.link === "lost") {
      say("error", `No connection to the service since ${Words.clock(state.linkSince)} UTC. What you see is old. Trying again …`);
    } else if (state.trouble) say("error", `The ledger cannot be read: ${state.trouble}`);
    else if (!status) say("wait", "Loading …");
    else if (status.problems.length) {
      const worst = status.problems.some((problem) => problem.severity === "error") ? "error" : "warning";
      say(worst, status.problems.map((problem) => problem.message).join(" · "));
    } else if (status.state === "no_run") say("wait", "No paper run yet. Start one with “python -m service paper” or “docker compose up”; this page follows by itself.");
    else {
      const last = state.decisions[state.decisions.length - 1];
      say("ok", last ? `All is well. Last decision at ${Words.time(last.decided_ms)} UTC.` : "All is well. Waiting for the first bar to close.");
    }
  };

  const MODE_WORDS = {
    ACTIVE: "Trading: the agent's target becomes the order.",
    REDUCING: "Only orders that make the position smaller are placed",
    HALTED: "Halted: no order is placed but the one that closes the position, where that was asked for",
  };

  const renderStatus = () => {
    const { run, guards, account, positions, process, counts } = state.status;
    put("market", run ? `${run.instrument} · ${run.timeframe}` : "smu0");
    document.title = run ? `${account ? Words.money(account.equity) + " · " : ""}${run.instrument} · paper` : "smu0 · paper";
    const mode = guards?.mode ?? "";
    by("mode").dataset.mode = mode;
    put("mode", mode || "no run");
    put("model", run ? run.model : "–");
    by("model").title = run ? `${run.model}, weights ${run.checkpoint_sha256.slice(0, 12)}` : "";
    put("mode-words", guards ? `${MODE_WORDS[mode]}${guards.reason ? `: ${guards.reason}` : ""}${mode === "ACTIVE" ? "" : "."}` : "There is nothing to control before the first run.");

    const since = run?.initial_equity;
    const gain = account ? account.equity / since - 1 : null;
    put("equity", account ? Words.money(account.equity) : "–");
    put("equity-note", account ? `${Words.percent(gain, 2, true)} since the start` : "\u00a0");
    tone("equity-note", gain);
    const hold = account?.buy_and_hold_equity ?? null;
    put("hold", hold === null ? "–" : Words.money(hold));
    put("hold-note", hold === null ? "\u00a0" : `${Words.percent(hold / since - 1, 1, true)}, we ${account.equity < hold ? "trail" : "lead"} by ${Words.percent(Math.abs(account.equity / hold - 1), 1)}`);
    put("drawdown", account ? Words.percent(account.drawdown_fraction) : "–");
    put("drawdown-note", account ? `from ${Words.money(account.peak_equity)}` : "\u00a0");
    const held = positions[0];
    put("position", !run ? "–" : held && held.units !== 0 ? `${held.units > 0 ? "Long" : "Short"} ${Words.percent(Math.abs(held.exposure), 0)}` : "Flat");
    put("position-note", held && held.units !== 0 ? `${Words.quantity(held.units)} at ${Words.price(held.average_price)}` : "\u00a0");
    put("close", account?.close ? Words.price(account.close) : "–");
    put("close-note", account ? `bar of ${Words.time(account.updated_ts)}` : "\u00a0");
    put("decided", counts ? Words.number(counts.decided + counts.blocked, 0) : "–");
    put("decided-note", counts ? `${Words.number(counts.skipped_late + counts.skipped_gap, 0)} skipped, ${Words.number(counts.fills, 0)} fills` : "\u00a0");

    const items = state.status.assumptions.map((text) => {
      const item = document.createElement("li");
      item.textContent = text;
      return item;
    });
    if (items.length && by("assumptions").dataset.run !== run.id) {
      by("assumptions").replaceChildren(...items);
      by("assumptions").dataset.run = run.id;
    }
    put("footer", run ? `Run ${run.id} · ${run.venue} · seed ${run.seed} · began ${Words.time(run.created_ms)} UTC with ${Words.money(run.initial_equity)} · code ${run.code_version} · all times UTC` : "All times UTC");

    const mayControl = state.session.scopes.includes("control");
    for (const button of by("controls").querySelectorAll("button")) {
      const command = button.dataset.command;
      const useless = !guards || (command === "resume" && mode === "ACTIVE") || (command === "halt" && mode === "HALTED");
      button.disabled = !mayControl || useless;
      button.title = mayControl ? "" : "The key you logged in with lacks the scope control";
    }
    renderOutcome();
    renderLine();
    tick();
  };

  const renderOutcome = () => {
    const latest = state.status.commands[0];
    if (!latest) return;
    const word = { pending: "waits for the paper process", done: "done", refused: "refused" }[latest.status];
    put("command-outcome", `${latest.kind} by ${latest.requested_by} at ${Words.clock(latest.requested_ms)}: ${word}${latest.result ? ` – ${latest.result}` : ""} (${latest.reason})`);
  };

  const barMs = () => state.status?.run?.bar_ms ?? 3600000;

  // What changes with the clock alone. A replay lives at a time of its own: there only the heartbeat tells the time.
  const tick = () => {
    const status = state.status;
    if (!status) return;
    const { process } = status;
    const beat = process?.state ?? null;
    const ours = beat !== null && beat.venue_ms !== null && Math.abs(beat.venue_ms - process.heartbeat_ms) < 300000;
    const passed = ours ? (now() - process.heartbeat_ms) / 1000 : 0;
    const age = beat === null || beat.data_age_seconds === null ? null : beat.data_age_seconds + passed;
    put("data-age", Words.duration(age));
    by("data-age").classList.toggle("late", ours && age !== null && age > (2 * barMs()) / 1000);
    const due = beat?.next_bar_due_ms ?? null;
    const wait = due === null || beat.venue_ms === null ? null : (due - beat.venue_ms) / 1000 - passed;
    put("next-bar", wait === null ? "–" : wait > 0 ? `in ${Words.duration(wait)}` : "due");
    const skew = beat === null || beat.clock_offset_ms === null ? null : beat.clock_skew_ms;
    put("skew", skew === null ? "–" : `${Words.number(skew / 1000, 2, true)} s`);
    by("skew").classList.toggle("late", skew !== null && Math.abs(skew) > 1000);
  };

  const latestDecision = () => {
    for (let at = state.decisions.length - 1; at >= 0; at -= 1) {
      if (state.decisions[at].policy) return state.decisions[at];
    }
    return null;
  };

  const renderDecision = () => {
    const decision = latestDecision();
    const run = state.status?.run;
    if (!decision || !run) {
      put("decision-words", "None yet");
      put("decision-reason", "The agent decides when a bar closes.");
      by("policy").replaceChildren();
      put("decision-value", "\u00a0");
      Charts.draw("chart-outlook", null, "What the agent expects appears with its first decision.");
      put("t-outlook", "\u00a0");
      return;
    }
    put("decision-time", `bar of ${Words.time(decision.bar_ts)}`);
    put("decision-words", Words.target(decision.target_position) + (decision.status === "blocked" ? ", overruled by a guard" : ""));
    put("decision-reason", decision.reason);
    put("decision-value", `value ${Words.number(decision.value, 3, true)}`);
    by("decision-value").title = "Expected discounted sum of the coming rewards, in the units of the model's reward";

    const list = by("policy");
    const actions = decision.policy.length;
    if (list.children.length !== actions) {
      list.replaceChildren(...decision.policy.map(() => {
        const item = document.createElement("li");
        item.innerHTML = '<span class="label"></span><span class="track" aria-hidden="true"><span class="fill"></span><span class="prior"></span></span><span class="share"></span><span class="q"></span>';
        return item;
      }));
    }
    decision.policy.forEach((share, action) => {
      const item = list.children[action];
      const q = decision.q_values?.[action];
      item.className = action === decision.action ? "chosen" : "";
      item.querySelector(".label").textContent = Words.target(run.target_positions[action] ?? null);
      item.querySelector(".fill").style.width = `${100 * share}%`;
      const prior = decision.prior?.[action];
      item.querySelector(".prior").hidden = prior === undefined;
      if (prior !== undefined) item.querySelector(".prior").style.left = `calc(${100 * prior}% - 1px)`;
      item.querySelector(".share").textContent = Words.percent(share, 0);
      item.querySelector(".q").textContent = q === undefined ? "" : Words.number(q, 3, true);
      item.title = `${Words.percent(share, 1)} after the search, ${prior === undefined ? "" : `${Words.percent(prior, 1)} before it, `}${decision.visits?.[action] ?? 0} visits, value ${Words.number(q, 4, true)}`;
    });

    const figure = Charts.outlookChart(state.bars, decision);
    const weighed = (decision.outlook ?? []).filter((one) => one.probability > 0);
    const known = weighed.filter((one) => one.mean_return !== null);
    Charts.draw("chart-outlook", figure, !decision.outlook?.length ? "This policy has no model of chance." : !weighed.length ? "The search did not look at what follows this action." : "The outcomes of this model have no recorded meaning.");
    const likely = known[0];
    if (likely) {
      const mean = known.reduce((sum, one) => sum + one.probability * one.mean_return, 0) / known.reduce((sum, one) => sum + one.probability, 0);
      const names = Object.keys(likely.quantiles).sort((a, b) => Number(a) - Number(b));
      put("t-outlook", `${known.length} outcomes, mean ${Words.percent(Math.expm1(mean), 2, true)}. Most likely (${Words.percent(likely.probability, 0)}): ${Words.percent(Math.expm1(likely.quantiles[names[0]]), 2, true)} to ${Words.percent(Math.expm1(likely.quantiles[names[names.length - 1]]), 2, true)}.`);
    } else put("t-outlook", "\u00a0");
  };

  const STATUS_WORDS = { skipped_late: "skipped, late", skipped_gap: "skipped, gap" };

  const renderTables = () => {
    const decisions = state.decisions.slice(-SHOWN_ROWS).reverse();
    fillBody("decisions", decisions.map((one) => row([
      cell(Words.time(one.bar_ts), "time"),
      cell(STATUS_WORDS[one.status] ?? Words.target(one.target_position), "target"),
      cell(Words.number(one.value, 3, true), "number wide"),
      cell(Words.milliseconds(one.latency_ms), "number wide"),
      cell(one.reason, "why"),
    ], one.status.startsWith("skipped") ? "skipped" : "")), 5, "No decision yet.");
    put("n-decisions", state.decisions.length ? `newest ${decisions.length} of ${Words.number(state.status?.counts?.decisions ?? state.decisions.length, 0)}` : "\u00a0");

    const events = state.events.slice(-SHOWN_ROWS).reverse();
    fillBody("events", events.map((one) => {
      const words = cell("", "");
      if (one.severity !== "info") {
        const mark = document.createElement("span");
        mark.className = "severity";
        mark.dataset.severity = one.severity;
        mark.textContent = one.severity === "error" ? "Error: " : "Warning: ";
        words.append(mark);
      }
      words.append(one.message);
      return row([cell(Words.clock(one.ts_ms), "time"), words]);
    }), 2, "Nothing has happened yet.");
    put("n-events", events.length ? `newest ${events.length}` : "\u00a0");

    const timed = state.decisions.filter((one) => one.latency_ms !== null);
    const sorted = timed.map((one) => one.latency_ms).sort((a, b) => a - b);
    const at = (share) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
    put("latency-words", sorted.length ? `median ${Words.milliseconds(at(0.5))} ms, 99% < ${Words.milliseconds(at(0.99))} ms` : "\u00a0");
    Charts.draw("chart-latency", Charts.latencyChart(state.decisions), "Appears with the second decision.");
    renderLine();
  };

  const COSTS = ["fee", "slippage_cost", "impact_cost", "latency_pnl", "gap_pnl"];

  const renderFills = () => {
    const fills = state.fills.slice(-SHOWN_ROWS).reverse();
    fillBody("fills", fills.map((one) => row([
      cell(Words.time(one.bar_ts), "time"), cell(Words.quantity(one.quantity), "number"), cell(Words.price(one.price), "number"),
      ...COSTS.map((name) => cell(Words.money(name.endsWith("pnl") ? one[name] : -one[name], true), "number")),
    ])), 8, "Nothing has been filled yet.");
    put("n-fills", state.fills.length ? `newest ${fills.length} of ${Words.number(state.status?.counts?.fills ?? state.fills.length, 0)}` : "\u00a0");
    const total = by("fills-total");
    if (!state.fills.length) {
      total.replaceChildren();
      return;
    }
    const label = document.createElement("th");
    label.scope = "row";
    label.colSpan = 3;
    label.textContent = `Sum of ${state.fills.length}`;
    total.replaceChildren(row([label, ...COSTS.map((name) => {
      const sum = state.fills.reduce((so_far, one) => so_far + one[name], 0);
      return cell(Words.money(name.endsWith("pnl") ? sum : -sum, true), "number");
    })]));
  };

  const render = () => {
    if (document.hidden) return;  // drawn when somebody looks again
    const bars = state.bars.slice(-state.shownBars);
    const first = bars.length ? bars[0].ts : 0;
    const equity = state.equity.filter((point) => point.ts >= first);
    const fills = state.fills.filter((fill) => fill.bar_ts >= first);
    const jobs = [
      Charts.draw("chart-price", Charts.priceChart(bars, fills, equity, state.status?.run?.target_positions ?? [-1, 1]), "Candles appear with the first closed bars."),
      Charts.draw("chart-equity", Charts.equityChart(equity), "The curve begins with the second bar of the account."),
    ];
    const from = bars.length ? `${bars.length} bars since ${Words.time(first)} UTC` : "\u00a0";
    put("t-price", bars.length ? `${from}: ${fills.length} fills, last close ${Words.price(bars[bars.length - 1].close)}.` : from);
    const mark = equity[equity.length - 1];
    put("t-equity", mark ? `Equity ${Words.money(mark.equity)}, buy and hold ${Words.money(mark.buy_and_hold_equity)}, ${Words.percent(mark.drawdown_fraction)} below the peak, at ${Words.time(mark.ts + barMs())} UTC.` : "\u00a0");
    renderFills();
    renderDecision();
    renderTables();
    Promise.all(jobs).then(() => { document.documentElement.dataset.drawn = String(state.equity.length); });
  };

  // --- control ------------------------------------------------------------------------------------------------------

  const COMMANDS = {
    halt: ["Halt trading", "No further order is placed. What is held stays held until you flatten or resume.", "Halt"],
    flatten: ["Close the position and halt", "The position is closed at the next bar's open, at what that costs. Trading stays halted until you resume.", "Flatten and halt"],
    resume: ["Resume trading", "The agent trades again from the next closed bar. The losses so far are accepted: drawdown and daily loss are counted from here.", "Resume"],
  };
  const dialog = by("dialog");
  let asked = null;

  const openDialog = (command) => {
    asked = command;
    const [title, words, action] = COMMANDS[command];
    put("dialog-title", title);
    put("dialog-words", words);
    put("dialog-confirm", action);
    put("dialog-problem", "");
    by("reason").value = "";
    dialog.showModal();
    by("reason").focus();
  };

  by("controls").addEventListener("click", (event) => {
    const command = event.target.closest("button")?.dataset.command;
    if (command) openDialog(command);
  });
  by("dialog-cancel").addEventListener("click", () => dialog.close());
  by("dialog-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const confirm = by("dialog-confirm");
    confirm.disabled = true;
    try {
      await change("POST", `/v1/paper/${asked}`, { confirm: asked, reason: by("reason").value.trim() });
      dialog.close();
      put("command-outcome", `${asked}: waits for the paper process`);
      takeStatus(await ask("/v1/paper/status"));
    } catch (error) {
      put("dialog-problem", error.message);
    } finally {
      confirm.disabled = false;
    }
  });

  const renderRanges = () => {
    for (const one of by("ranges").children) one.setAttribute("aria-pressed", String(Number(one.dataset.bars) === state.shownBars));
  };
  by("ranges").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    state.shownBars = Number(button.dataset.bars);
    renderRanges();
    render();
  });
  renderRanges();

  by("logout").addEventListener("click", async () => {
    try {
      await change("DELETE", "/v1/session");
    } finally {
      leave();
    }
  });

  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", render);
  document.addEventListener("visibilitychange", render);
  // A chart follows its box, not only the window.
  const boxes = new ResizeObserver((entries) => {
    for (const { target } of entries) if (target.classList.contains("js-plotly-plot")) Plotly.Plots.resize(target);
  });
  document.querySelectorAll(".graph").forEach((box) => boxes.observe(box));

  const boot = async () => {
    try {
      state.session = await ask("/v1/session");
      takeStatus(await ask("/v1/paper/status"));
      await start();
    } catch (error) {
      say("error", `This page could not be filled: ${error.message}. Trying again …`);
      setTimeout(boot, 3000);
      return;
    }
    listen();
    setInterval(tick, 1000);
  };
  boot();
})();
