// A run as it goes on: two charts of a bounded number of points, numbers, previews and log, fed by server-sent events.
"use strict";
(() => {
  const page = document.getElementById("run"), id = page.dataset.id, $ = (name) => document.getElementById(name);
  const MOST = 2400; // points of a chart; more are asked for anew in fewer bins
  let data = JSON.parse(page.dataset.curve), after = Number(page.dataset.after), charts = {};
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function columns() {
    const held = new Map(data.held_out), steps = Array.from(new Set([...data.step, ...held.keys()])).sort((a, b) => a - b);
    const at = new Map(data.step.map((step, index) => [step, index]));
    const of = (values) => steps.map((step) => (at.has(step) ? values[at.get(step)] : null));
    return { steps, loss: [steps, of(data.low), of(data.high), of(data.mean), smooth(of(data.mean)), steps.map((step) => (held.has(step) ? held.get(step) : null))],
      rate: [steps, ...Object.values(data.rates).map(of)] };
  }
  // A mean over about a twentieth of the run, so that a trend is seen through the noise of single steps.
  function smooth(values) {
    const share = 2 / (Math.max(1, values.length / 20) + 1);
    let mean = null;
    return values.map((value) => { if (value !== null) mean = mean === null ? value : mean + share * (value - mean); return value === null ? null : mean; });
  }
  const small = (value) => (value === null || value === undefined ? "–" : value === 0 ? "0" : Math.abs(value) >= 0.01 ? Number(value.toPrecision(4)).toString() : value.toExponential(2));

  function options(place, series, bands) {
    const axis = { stroke: style("--soft"), grid: { stroke: style("--line"), width: 1 }, ticks: { stroke: style("--line") }, font: "13px system-ui" };
    return { width: Math.max(200, place.clientWidth), height: 260, scales: { x: { time: false } }, series, bands,
      axes: [{ ...axis, label: "step", labelFont: "13px system-ui", labelSize: 20, size: 32 }, { ...axis, size: 72, values: (u, ticks) => ticks.map(small) }], legend: { live: true }, cursor: { points: { size: 6 } } };
  }
  function draw() {
    if (!data.step.length) { $("c-loss").textContent = "No step yet: the model is being loaded and the images are prepared."; $("c-rate").textContent = ""; return; }
    const now = columns(), line = style("--accent"), gap = { spanGaps: true };
    if (charts.loss && charts.rates === Object.keys(data.rates).length) {
      charts.loss.setData(now.loss);
      charts.rate.setData(now.rate);
      return;
    }
    for (const one of [charts.loss, charts.rate]) if (one) one.destroy();
    $("c-loss").textContent = $("c-rate").textContent = "";
    const value = (u, raw) => small(raw), faint = { ...gap, stroke: "transparent", points: { show: false }, value };
    charts.loss = new uPlot(options($("c-loss"), [{ label: "step" }, { ...faint, label: "lowest" }, { ...faint, label: "highest" },
      { ...gap, label: "mean", stroke: line + "66", width: 1, points: { show: false }, value },
      { ...gap, label: "smooth", stroke: line, width: 2, points: { show: false }, value },
      { label: "held-out", stroke: style("--p3"), width: 1, spanGaps: true, dash: [4, 4], points: { show: true, size: 7, fill: style("--p3") }, value }],
      [{ series: [2, 1], fill: line + "33" }]), now.loss, $("c-loss"));
    const colours = ["--accent", "--p3", "--p4", "--good"];
    charts.rate = new uPlot(options($("c-rate"), [{ label: "step" }, ...Object.keys(data.rates).map((name, index) => ({ ...gap, label: name, stroke: style(colours[index % 4]), width: 2, dash: index ? [8, 4] : [], points: { show: false }, value }))]), now.rate, $("c-rate"));
    charts.rates = Object.keys(data.rates).length;
  }
  function read(which, by) {
    const chart = charts[which];
    if (!chart) return;
    const last = chart.data[0].length - 1;
    let place = chart.cursor.idx === null || chart.cursor.idx === undefined ? last : chart.cursor.idx + by;
    place = Math.max(0, Math.min(last, place));
    chart.setCursor({ left: chart.valToPos(chart.data[0][place], "x"), top: 20 });
    $(`c-${which}-reading`).textContent = `step ${chart.data[0][place]}: ` + chart.series.slice(1).map((one, index) => `${one.label} ${small(chart.data[index + 1][place])}`).join(", ");
  }
  for (const which of ["loss", "rate"]) $("c-" + which).addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20 }[event.key];
    if (by) { event.preventDefault(); read(which, by); }
  });
  new ResizeObserver(() => { for (const which of ["loss", "rate"]) if (charts[which]) charts[which].setSize({ width: Math.max(200, $("c-" + which).clientWidth), height: 260 }); }).observe(page);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { charts.rates = -1; draw(); });

  async function anew() {
    const answer = await fetch(`/api/run/${id}/curve`);
    if (answer.ok) { data = await answer.json(); draw(); }
  }
  const time = (seconds) => { const s = Math.round(seconds); return `${Math.floor(s / 3600)}:${String(Math.floor(s / 60) % 60).padStart(2, "0")}:${String(s % 60).padStart(2, "0")}`; };
  const bytes = (count) => (count >= 2 ** 30 ? (count / 2 ** 30).toFixed(1) + " GiB" : (count / 2 ** 20).toFixed(1) + " MiB");
  function state(now) {
    const active = now.state === "running" || now.state === "starting";
    $("r-state").textContent = now.words;
    $("r-state").className = "state " + now.state;
    document.title = `${now.name}: ${now.words} · kohyakit`;
    $("r-step").textContent = now.step.toLocaleString("en") + (now.total ? " of " + now.total.toLocaleString("en") : "");
    $("r-epoch").textContent = (now.epoch || "–") + (now.epochs ? " of " + now.epochs : "");
    $("r-left").textContent = now.seconds_left === null ? "–" : time(now.seconds_left);
    $("r-speed").textContent = now.images_per_second ? now.images_per_second.toFixed(2) + " img/s" : "–";
    $("r-memory").textContent = now.memory ? bytes(now.memory) : "–";
    $("r-loss").textContent = now.loss === null ? "–" : now.loss.toFixed(4);
    $("r-progress").max = now.total || 1;
    $("r-progress").value = now.step;
    $("b-stop").hidden = !active;
    $("b-resume").hidden = active || now.state === "finished" || now.state === "new";
    $("b-more").hidden = now.state !== "finished";
    const bad = ["failed", "refused", "killed"].includes(now.state);
    $("r-end").hidden = !bad;
    $("r-end").className = "finding " + (bad ? "error" : "note");
    if (bad) $("r-end").firstElementChild.textContent = { refused: "It was refused before the first step; the log below says why, and what to do.", killed: "It ended without a word: the process or the machine was stopped. Resume goes on from its newest whole state.", failed: "It ended before it was done; the log below says why, and what to do." }[now.state];
    if (page.dataset.state !== now.state) { page.dataset.state = now.state; results(); }
  }
  function results() {
    htmx.ajax("GET", `/run/${id}/part/previews`, { target: "#previews", swap: "innerHTML" });
    htmx.trigger("#report", "refresh");
  }
  let lines = null;
  function log(shown) {
    const place = $("log");
    if (!place) return;
    const wanted = $("log-filter").value;
    if (wanted) { filtered(); return; }
    lines = shown;
    const end = place.scrollTop + place.clientHeight > place.scrollHeight - 40;
    place.textContent = shown.join("\n");
    if (end) place.scrollTop = place.scrollHeight;
  }
  async function filtered() {
    const answer = await fetch(`/api/run/${id}/log?filter=${encodeURIComponent($("log-filter").value)}`);
    if (answer.ok) $("log").textContent = (await answer.json()).lines.join("\n") || "no line holds that";
  }
  if ($("log-filter")) { $("log-filter").addEventListener("input", filtered); $("log").scrollTop = $("log").scrollHeight; }

  function listen() {
    const source = new EventSource(`/api/run/${id}/events?after=${after}`);
    source.addEventListener("open", () => kohyakitGone(false));
    source.addEventListener("error", () => { kohyakitGone(true); source.close(); setTimeout(listen, 2000); });
    source.addEventListener("gone", () => { source.close(); kohyakitSay("The run folder is gone: it was moved or renamed.", 20); });
    source.addEventListener("state", (event) => state(JSON.parse(event.data)));
    source.addEventListener("restart", () => anew());
    source.addEventListener("results", results);
    source.addEventListener("log", (event) => log(JSON.parse(event.data).lines));
    source.addEventListener("steps", (event) => {
      const fresh = JSON.parse(event.data);
      after = fresh.step.length ? fresh.step[fresh.step.length - 1] : after;
      const names = Object.keys(fresh.rates);
      if (data.step.length + fresh.step.length > MOST || names.some((name) => !(name in data.rates)) || (data.step.length && fresh.step[0] <= data.step[data.step.length - 1])) { anew(); return; }
      for (const name of ["step", "mean", "low", "high"]) data[name].push(...fresh[name]);
      for (const name of Object.keys(data.rates)) data.rates[name].push(...(fresh.rates[name] || fresh.step.map(() => null)));
      data.held_out.push(...fresh.held_out);
      draw();
    });
  }

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-run]");
    if (!button) return;
    button.disabled = true;
    const what = button.dataset.run, values = what === "continue" ? { epochs: $("more-epochs").value } : {};
    const answer = await kohyakitSend(`/api/run/${id}/${what === "continue" ? "resume" : what}`, values).catch(() => null);
    button.disabled = false;
    if (!answer) return;
    const found = await answer.json().catch(() => ({}));
    if (!answer.ok) { kohyakitSay((found.problems || []).map((one) => one.must + (one.fix ? ". " + one.fix : "")).join("; ") || "That did not work.", 15); return; }
    kohyakitSay(what === "stop" ? "It finishes its step and saves its state." : "It is being started.");
    if (found.address && found.address !== location.pathname) location.href = found.address;
  });

  // Hold a preview to see the base model's.
  const swap = (image, on) => { if (!image.dataset.hold) return; if (on) { image.dataset.own = image.dataset.own || image.src; image.src = image.dataset.hold; } else if (image.dataset.own) image.src = image.dataset.own; };
  let held = null, since = 0;
  document.addEventListener("pointerdown", (event) => { const image = event.target.closest("img[data-hold]"); if (image) { since = Date.now(); held = image; setTimeout(() => { if (held === image) swap(image, true); }, 200); } });
  document.addEventListener("pointerup", () => { if (held) swap(held, false); held = null; });
  document.addEventListener("click", (event) => { if (event.target.closest("img[data-hold]") && Date.now() - since > 300) event.preventDefault(); });
  document.addEventListener("dragstart", (event) => { if (event.target.closest("img[data-hold]")) event.preventDefault(); });
  for (const [kind, on] of [["keydown", true], ["keyup", false]]) document.addEventListener(kind, (event) => {
    const image = event.key === " " && document.activeElement && document.activeElement.querySelector && document.activeElement.querySelector("img[data-hold]");
    if (image) { event.preventDefault(); swap(image, on); }
  });

  draw();
  listen();
})();
