"""The style sheet of the page, for light and dark screens and for paper."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c1f24; --soft: #656d78; --line: #d8dce2; --ground: #fff; --box: #f5f6f8;
  --c0: #1f6fd0; --c1: #c2570c; --c2: #1a7f4b; --c3: #8a3ffc; --c4: #b8004e; --c5: #007d8a; --c6: #7a6000;
  --c7: #5b6470 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #9aa3ae; --line: #363c45; --ground: #15181c;
  --box: #1f242a; --c0: #6cb0ff; --c1: #ff9d57; --c2: #5fd394; --c3: #c19bff; --c4: #ff7fb0; --c5: #52d0de;
  --c6: #e3c04b; --c7: #aeb6c0 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground); max-width: 64rem;
  margin: 2rem auto; padding: 0 1rem }
h1 { margin-bottom: 0; overflow-wrap: anywhere } h1 + p { margin-top: 0; color: var(--soft) }
h2 { margin-top: 2.2rem; border-bottom: 1px solid var(--line) } h3 { margin: 1.2rem 0 .3rem; font-size: 1rem }
.small { font-size: 13px; color: var(--soft) }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(13.5rem, 1fr)); gap: .6rem }
dl div { background: var(--box); border-radius: 6px; padding: .5rem .8rem }
dt { font-size: 13px; color: var(--soft) } dd { margin: 0; font-weight: 600 }
pre { background: var(--box); border-radius: 6px; padding: .5rem .8rem; margin: .4rem 0 1rem; white-space: pre-wrap;
  overflow-wrap: anywhere; font-size: 13px }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: 14px }
th, td { text-align: left; vertical-align: top; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line) }
td { overflow-wrap: anywhere; min-width: 4rem } th { font-weight: 600; white-space: nowrap }
.sheet td { font-size: 13px; min-width: 9rem; width: 14rem } .option { white-space: nowrap }
details { margin-top: 1rem }
.sheet td:first-child { position: sticky; left: 0; background: var(--ground) }
td h3 { margin: .8rem 0 0; white-space: nowrap }
.prompt { display: block; min-width: 8rem; white-space: normal; font-weight: 400 }
.sheet img { display: block; width: 100%; min-width: 128px; max-width: 256px; cursor: zoom-in; border-radius: 4px }
.zoom input { position: absolute; opacity: 0 } .zoom input:focus-visible + img { outline: 3px solid var(--c0) }
.zoom input:checked + img { position: fixed; inset: 0; z-index: 9; width: 100vw; height: 100vh; max-width: none;
  object-fit: contain; background: #000d; cursor: zoom-out; border-radius: 0 }
.data { display: grid; grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); gap: .8rem; margin-top: .8rem }
.data figure { margin: 0; font-size: 13px; overflow-wrap: anywhere } .data img { display: block; max-width: 100% }
figure { margin: 1rem 0 } svg { width: 100%; height: auto; display: block } summary { cursor: pointer }
svg path { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round }
svg text { fill: var(--soft); font-size: 12px } svg .small { font-size: 10px }
.end { text-anchor: end } .mid { text-anchor: middle }
svg .grid { stroke: var(--line); stroke-width: 1 } svg .raw { stroke-width: 1; opacity: .45 }
svg .epoch { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 3 4 }
svg .lost { stroke: #d1242f; stroke-width: 2 }
.strip { fill: transparent } .strip:hover { fill: var(--ink); opacity: .08 }
.key { margin-left: 1rem; font-size: 13px; color: var(--soft); white-space: nowrap }
.key i { display: inline-block; width: 1.2em; border-top: 3px solid currentColor; vertical-align: middle;
  margin-right: .4em }
.faint i { opacity: .45; border-top-width: 1px }
.c0, .c0 i { color: var(--c0) } .c1, .c1 i { color: var(--c1) } .c2, .c2 i { color: var(--c2) }
.c3, .c3 i { color: var(--c3) } .c4, .c4 i { color: var(--c4) } .c5, .c5 i { color: var(--c5) }
.c6, .c6 i { color: var(--c6) } .c7, .c7 i { color: var(--c7) }
@media print { body { max-width: none } .wide { overflow: visible } }
"""
