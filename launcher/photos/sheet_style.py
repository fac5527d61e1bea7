"""How the sheet looks, and its script: filters, search, look-alikes. Without the script everything is still there."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --ink: #222; --page: #fafafa; --card: #fff; --line: #ddd; --faint: #555;
  --error: #b00020; --warning: #8a5a00; --pressed: #1a56b0; --on: #fff }
@media (prefers-color-scheme: dark) { :root { --ink: #ddd; --page: #161616; --card: #222; --line: #444; --faint: #aaa;
  --error: #ff8a94; --warning: #e6b450; --pressed: #7fb2ff; --on: #111 } }
* { box-sizing: border-box }
[hidden] { display: none !important }
body { font: 15px/1.4 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 1600px; color: var(--ink);
  background: var(--page) }
h1 { font-size: 1.4rem; margin: .3rem 0; overflow-wrap: anywhere }
nav { position: sticky; top: 0; z-index: 2; display: flex; flex-wrap: wrap; gap: .35rem; align-items: center;
  padding: .5rem 0; background: var(--page); max-height: 40vh; overflow: auto }
button, input[type=search] { font: inherit; font-size: 13px; padding: .15rem .55rem; border: 1px solid var(--line);
  border-radius: 1rem; background: var(--card); color: inherit }
button { cursor: pointer } button[aria-pressed=true] { background: var(--pressed); color: var(--on) }
label { font-size: 13px; white-space: nowrap }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(230px, 100%), 1fr)); gap: .8rem;
  margin: 1rem 0; align-items: start }
figure { margin: 0; padding: .5rem; background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  content-visibility: auto; contain-intrinsic-size: auto 20rem }
figure.error { border-color: var(--error) }
figure:target { outline: 3px solid var(--pressed) }
.frame { position: relative; overflow: hidden; margin: 0 auto .4rem; max-width: 100% }
.frame img { width: 100%; height: 100%; display: block }
.frame .mask { position: absolute; inset: 0; mix-blend-mode: multiply; opacity: .8 }
.cut { position: absolute; outline: 2px solid #fff; box-shadow: 0 0 0 2px #000, 0 0 0 999px rgb(0 0 0 / .55) }
.no-cuts .cut, .no-masks .mask { display: none }
.none { height: 14rem; display: grid; place-items: center; border: 1px dashed var(--error); margin: 0 0 .4rem;
  color: var(--error); text-align: center }
figcaption { font-size: 13px; overflow-wrap: anywhere }
p { margin: .3rem 0; overflow-wrap: anywhere }
p.error { color: var(--error) } p.warning { color: var(--warning) } p.note, .small { color: var(--faint) }
details { margin: .8rem 0 } summary { cursor: pointer; font-weight: 600 }
.pair { display: inline-grid; grid-template-columns: 1fr 1fr; gap: .2rem .4rem; width: min(24rem, 100%); margin: .4rem;
  padding: .5rem; background: var(--card); border: 1px solid var(--line); border-radius: 6px; font-size: 13px;
  vertical-align: top; overflow-wrap: anywhere }
.pair b { grid-column: 1 / 3 } .pair img { width: 100%; height: 11rem; object-fit: contain }
.tags { display: flex; flex-wrap: wrap; gap: .3rem }
table { border-collapse: collapse } td, th { padding: .1rem .8rem .1rem 0; text-align: left; overflow-wrap: anywhere }
"""

SCRIPT = """
(() => {
  const all = [...document.querySelectorAll('main figure')];
  const facts = all.map(one => ({ one, flags: new Set((one.dataset.flags || '').split(' ')),
    text: one.textContent.toLowerCase(), tags: null }));
  const search = document.getElementById('search'), count = document.getElementById('shown');
  const chosen = new Set();
  const apply = () => {
    const text = search.value.trim().toLowerCase();
    let shown = 0;
    for (const { one, flags, text: own } of facts) {
      const fits = [...chosen].every(flag => flags.has(flag)) && (!text || own.includes(text));
      one.hidden = !fits;
      shown += fits;
    }
    count.textContent = shown === facts.length ? '' : shown + ' of ' + facts.length;
    document.getElementById('none').hidden = shown > 0 || !facts.length;
  };
  for (const button of document.querySelectorAll('[data-flag]')) button.onclick = () => {
    const flag = button.dataset.flag, on = !chosen.has(flag);
    if (on) chosen.add(flag); else chosen.delete(flag);
    button.setAttribute('aria-pressed', on);
    apply();
  };
  for (const button of document.querySelectorAll('[data-tag]')) button.onclick = () => {
    search.value = button.dataset.tag;
    apply();
    scrollTo(0, 0);
  };
  let wait;
  search.oninput = () => { clearTimeout(wait); wait = setTimeout(apply, 120) };
  for (const name of ['cuts', 'masks']) {
    const box = document.getElementById(name);
    if (box) box.onchange = () => document.body.classList.toggle('no-' + name, !box.checked);
  }
  const pairs = document.getElementById('pairs');
  const fill = () => {
    for (const pair of pairs.querySelectorAll('.pair:not(.filled)')) {
      pair.classList.add('filled');
      const labels = pair.querySelectorAll('span');
      for (const [place, key] of ['a', 'b'].entries()) {
        const source = document.querySelector('#i' + pair.dataset[key] + ' img');
        const link = document.createElement('a');
        link.href = '#i' + pair.dataset[key];
        if (source) { const image = new Image(); image.src = source.src; image.alt = ''; link.append(image) }
        pair.insertBefore(link, labels[0]);
      }
    }
  };
  if (pairs) pairs.ontoggle = () => { if (pairs.open) fill() };
})();
"""
