// What every screen needs besides htmx: fields that save themselves, fixes, pickers, search, drop, and words for errors.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const all = (what, where) => Array.from((where || document).querySelectorAll(what));

  function say(text, seconds) {
    const line = document.createElement("p");
    line.textContent = text;
    $("say").append(line);
    while ($("say").children.length > 3) $("say").firstChild.remove();
    setTimeout(() => line.remove(), (seconds || 6) * 1000);
  }
  window.kohyakitSay = say;

  function told(document_) {
    const found = (document_ && document_.problems) || [];
    return found.map((one) => `${one.key ? one.key + ": " : ""}${one.must}${one.fix ? ". " + one.fix : ""}`).join("; ") || "That did not work.";
  }

  async function send(address, values, htmx_) {
    const headers = { "Content-Type": "application/json", Accept: "application/json" };
    if (htmx_) headers["HX-Request"] = "true";
    let response;
    try {
      response = await fetch(address, { method: "POST", headers, body: JSON.stringify(values || {}) });
    } catch (fault) {
      gone(true);
      throw fault;
    }
    gone(false);
    return response;
  }
  window.kohyakitSend = send;

  // Server gone: a banner, and a look now and then until it is back.
  let waiting = null;
  function gone(is) {
    $("gone").hidden = !is;
    if (is && !waiting) {
      waiting = setInterval(async () => {
        try {
          const answer = await fetch("/static/icon.svg", { cache: "no-store" });
          if (answer.ok) gone(false);
        } catch (fault) { /* still away */ }
      }, 2000);
    }
    if (!is && waiting) { clearInterval(waiting); waiting = null; }
  }
  window.kohyakitGone = gone;
  document.addEventListener("htmx:sendError", () => gone(true));
  document.addEventListener("htmx:afterRequest", (event) => { if (event.detail.xhr && event.detail.xhr.status) gone(false); });

  // Parts that come back take the place of the old ones, but never of a field in which somebody is typing.
  document.addEventListener("htmx:oobBeforeSwap", (event) => {
    const at = document.activeElement, target = event.detail.target;
    if (at && target.contains(at) && at.matches("input:not([type=checkbox]), textarea") && at.dataset.dirty) event.detail.shouldSwap = false;
    const open = all("details", target).map((one) => one.open);
    const into = event.detail.fragment && event.detail.fragment.querySelectorAll ? all("details", event.detail.fragment) : [];
    if (open.length === into.length) into.forEach((one, index) => { one.open = open[index]; });
  });
  let focused = null;
  document.addEventListener("focusin", (event) => { focused = event.target.id || null; });
  document.addEventListener("htmx:oobAfterSwap", () => {
    if (focused && document.activeElement === document.body && $(focused)) $(focused).focus({ preventScroll: true });
    filter();
  });

  const editor = $("editor");
  const base = editor ? `/api/config/${editor.dataset.id}` : null;
  let chain = Promise.resolve();

  function change(address, values, field) {
    chain = chain.then(async () => {
      const response = await send(address, { ...values, seen: $("seen") ? $("seen").value : "", view: editor.dataset.view }, true).catch(() => null);
      if (!response) return;
      if (response.headers.get("HX-Redirect")) { location.href = response.headers.get("HX-Redirect"); return; }
      if (response.headers.get("HX-Refresh")) { location.reload(); return; }
      if (response.ok) {
        const html = response.status === 204 ? "" : await response.text();
        if (field) { delete field.dataset.dirty; const place = $("t-" + field.name); if (place) place.textContent = ""; }
        if (html) swap(html);
        return;
      }
      const document_ = await response.json().catch(() => null);
      const place = field && $("t-" + field.name);
      if (response.status === 409 && !field) { location.reload(); return; }
      if (response.status === 409) { htmx.trigger(document.body, "look"); say(told(document_)); return; }
      if (place) place.textContent = "not saved: " + told(document_); else say(told(document_), 12);
    });
    return chain;
  }

  function swap(html) {
    htmx.swap(document.body, html, { swapStyle: "none" });
  }

  const timers = new Map();
  function fieldChanged(field, now) {
    clearTimeout(timers.get(field.name));
    const value = field.type === "checkbox" ? String(field.checked) : field.value;
    field.dataset.dirty = "1";
    timers.set(field.name, setTimeout(() => change(base + "/set", { [field.name]: value }, field), now ? 0 : 180));
  }
  document.addEventListener("input", (event) => {
    const field = event.target;
    if (field.dataset.field !== undefined) fieldChanged(field, field.type === "checkbox" || field.tagName === "SELECT");
    if (field.id === "search") filter();
    if (field.id === "vram") $("vram-said").textContent = field.value === "0" ? "as it is" : field.value + " GB";
  });
  document.addEventListener("change", (event) => {
    if (event.target.id === "vram") change(base + "/words", { vram: event.target.value });
    if (event.target.id === "prompts") change(base + "/prompts", { text: event.target.value }, { name: "prompts", dataset: {} });
    if (event.target.id === "price") change(base + "/words", { price: event.target.value });
    if (event.target.id === "only") filter();
    if (event.target.id === "choose" && event.target.files.length) upload(event.target.files[0]);
  });

  function reveal(name) {
    const row = $("f-" + name);
    if (!row) return;
    if ($("search")) { $("search").value = ""; $("only").value = ""; filter(); }
    for (let at = row.parentElement; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
    row.scrollIntoView({ block: "center" });
    const input = $("i-" + name);
    if (input && input.focus) input.focus({ preventScroll: true });
  }

  // Search: by name, by Kohya's label, by words of the help; and what to show at all.
  function filter() {
    const box = $("search");
    if (!box) return;
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean), only = $("only").value;
    const busy = words.length > 0 || only !== "";
    let hits = 0;
    all(".field[data-search]").forEach((row) => {
      const who = row.dataset.who, text = row.dataset.search;
      const wanted = words.every((word) => text.includes(word)) && (only === "" || (only === "set" && who !== "default")
        || (only === "you" && who === "you") || (only === "found" && row.querySelector(".finding")));
      row.hidden = !wanted;
      hits += wanted ? 1 : 0;
    });
    all("details[data-section]").forEach((section) => {
      const some = all(".field", section).some((row) => !row.hidden);
      section.hidden = busy && !some;
      if (busy && some) { if (section.dataset.was === undefined) section.dataset.was = section.open ? "1" : ""; section.open = true; }
      if (!busy && section.dataset.was !== undefined) { section.open = section.dataset.was === "1"; delete section.dataset.was; }
    });
    $("hits").textContent = busy ? `${hits} option${hits === 1 ? "" : "s"}` : "";
  }

  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches && event.target.matches("input, textarea, select");
    if (event.key === "/" && !typing && $("search")) { event.preventDefault(); $("search").focus(); }
    if (event.key === "Escape" && event.target.id === "search") { event.target.value = ""; filter(); }
    if (editor && !typing && (event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") {
      event.preventDefault();
      change(base + (event.shiftKey ? "/redo" : "/undo"));
    }
  });

  document.addEventListener("click", (event) => {
    const at = event.target.closest("button, a");
    if (!at) return;
    const set = at.dataset;
    if (set.do) { at.disabled = true; change(`${base}/${set.do}`).then(() => { at.disabled = false; }); }
    if (set.fix === "show" || set.show) { event.preventDefault(); reveal(set.name || set.show); }
    if (set.fix === "set") change(base + "/set", JSON.parse(set.sets));
    if (set.fix === "open") location.href = set.value;
    if (set.fix === "trust") change(base + "/words", { trust: set.name });
    if (set.fix === "vram") change(base + "/words", { vram: set.value });
    if (set.fix === "overwrite") change(base + "/words", { overwrite: "true" });
    if (set.word) change(base + "/words", { [set.word]: set.value });
    if (set.take) change(base + "/settle", { take: set.take }).then(() => location.reload());
    if (set.copy) navigator.clipboard.writeText($(set.copy).textContent).then(() => say("copied"), () => say("Select it and copy it by hand: the browser forbids it here."));
    if (set.line) { event.preventDefault(); toLine(Number(set.line)); }
    if (set.pick) pick(set.pick, set.folders);
    if (set.picked !== undefined) { const input = $(set.for); input.value = set.picked; $("picker-" + set.for).textContent = ""; input.dispatchEvent(new Event("input", { bubbles: true })); input.focus(); }
    if (set.close) $("picker-" + set.close).textContent = "";
    if (set.keep) keep(at);
    if (set.post) { at.disabled = true; send(set.post, set.id ? { id: set.id } : {}).then(async (answer) => { if (answer.ok) location.reload(); else { at.disabled = false; say(told(await answer.json().catch(() => null)), 12); } }); }
    if (set.captionUndo) send("/api/dataset/undo", { dir: set.captionUndo }).then(async (answer) => { const found = await answer.json(); say(answer.ok ? found.said : told(found)); if (answer.ok) setTimeout(() => location.reload(), 600); });
    if (set.recheck) send("/api/dataset/recheck", { dir: set.recheck, extension: set.extension }).then(() => location.reload());
  });

  function pick(id, folders) {
    const place = $("picker-" + id), now = $(id).value;
    htmx.ajax("GET", `/parts/folder?for=${encodeURIComponent(id)}&folders=${folders || 0}&path=${encodeURIComponent(now)}`, { target: place, swap: "innerHTML" });
  }

  async function keep(button) {
    const answer = await send(`/api/run/${button.dataset.runId}/keep`, { file: button.dataset.keep });
    const found = await answer.json();
    say(answer.ok ? "kept as " + found.kept : told(found), 10);
    if (answer.ok) { const mark = document.createElement("span"); mark.className = "state finished"; mark.textContent = "kept"; button.replaceWith(mark); }
  }

  // The text of a config: saved as it is, also when it cannot be read.
  const form = $("textform");
  if (form) {
    const text = $("text"), lines = form.querySelector(".lines");
    text.addEventListener("scroll", () => { lines.scrollTop = text.scrollTop; });
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const answer = await send(base + "/text", { text: text.value, kind: form.dataset.kind, seen: $("seen").value }).catch(() => null);
      if (!answer) { $("text-said").textContent = "not saved: the server does not answer"; return; }
      if (answer.ok) { location.reload(); return; }
      $("text-said").textContent = "not saved: " + told(await answer.json().catch(() => null));
    });
  }
  function toLine(number) {
    const text = $("text"), before = text.value.split("\n").slice(0, number - 1).join("\n").length + (number > 1 ? 1 : 0);
    const end = text.value.indexOf("\n", before);
    text.focus();
    text.setSelectionRange(before, end < 0 ? text.value.length : end);
    text.scrollTop = Math.max(0, (number - 6) * 20);
  }

  // Captions are saved when the field is left, or Ctrl+Enter is pressed.
  document.addEventListener("change", async (event) => {
    const area = event.target;
    if (area.dataset.caption === undefined) return;
    const place = area.nextElementSibling;
    const answer = await send("/api/dataset/caption", { file: area.dataset.caption, caption: area.value, extension: $("sheet").dataset.extension }).catch(() => null);
    place.textContent = !answer ? "not saved: the server does not answer" : answer.ok ? "saved" : "not saved: " + told(await answer.json());
  });
  document.addEventListener("keydown", (event) => { if (event.ctrlKey && event.key === "Enter" && event.target.dataset.caption !== undefined) event.target.blur(); });
  document.addEventListener("htmx:beforeSwap", (event) => {
    if (event.detail.target && event.detail.target.id === "sheet" && document.activeElement && document.activeElement.dataset.caption !== undefined) event.detail.shouldSwap = false;
  });

  // Forms that open something.
  document.addEventListener("submit", async (event) => {
    const which = event.target;
    if (which.dataset.open === undefined) return;
    event.preventDefault();
    const answer = await send(which.getAttribute("action"), Object.fromEntries(new FormData(which))).catch(() => null);
    if (!answer) return;
    const found = await answer.json().catch(() => null);
    if (answer.ok) location.href = found.address; else say(told(found), 12);
  });

  async function upload(file) {
    const said = $("drop-said");
    said.textContent = `reading ${file.name} …`;
    try {
      const answer = await fetch(`/api/upload?name=${encodeURIComponent(file.name)}`, { method: "POST", headers: { Accept: "application/json", "Content-Type": "application/octet-stream" }, body: file });
      const found = await answer.json().catch(() => null);
      if (answer.ok) location.href = found.address; else said.textContent = answer.status === 413 ? "That file is too large." : told(found);
    } catch (fault) { said.textContent = "The file could not be sent."; }
  }
  const drop = $("drop");
  if (drop) {
    ["dragenter", "dragover"].forEach((kind) => document.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("on"); }));
    ["dragleave", "drop"].forEach((kind) => document.addEventListener(kind, () => drop.classList.remove("on")));
    document.addEventListener("drop", (event) => { event.preventDefault(); if (event.dataTransfer.files.length) upload(event.dataTransfer.files[0]); });
  }
  if (location.hash.startsWith("#f-")) window.addEventListener("load", () => reveal(location.hash.slice(3)));
})();
