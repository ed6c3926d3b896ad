"""The style sheet of the report: light and dark, on screen and on paper."""

from __future__ import annotations

from onnxopt.report.figure import NEEDED, SPARE

_NEEDED = "#{:02x}{:02x}{:02x}".format(*NEEDED)
_SPARE = "#{:02x}{:02x}{:02x}".format(*SPARE)

# Dark pictures are light ones inverted, with their hues turned back.
STYLE = f"""
:root {{
  color-scheme: light dark;
  --paper: #f7f7f5; --card: #ffffff; --ink: #1b1f24; --soft: #5a636e; --rule: #dcdedf; --faint: #eeefee;
  --link: #00538f; --good: #006b4f; --full: #101418; --masked: #a4001d; --biased: #6c006a;
  --needed: {_NEEDED}; --spare: {_SPARE};
}}
@media (prefers-color-scheme: dark) {{
  :root {{
    --paper: #14171a; --card: #1c2024; --ink: #e6e8ea; --soft: #a0a8b1; --rule: #363c43; --faint: #262b30;
    --link: #7cc0f5; --good: #5fd0a8; --full: #ffffff; --masked: #ffd84d; --biased: #ffb4f2;
  }}
  img, .cell {{ filter: invert(1) hue-rotate(180deg); }}
}}
* {{ box-sizing: border-box; }}
body {{
  margin: 0; padding: 2.5rem 1.5rem 5rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif;
}}
main {{ max-width: 1160px; margin: 0 auto; }}
h1 {{ font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.2rem; line-height: 1.3; margin: 0; overflow-wrap: anywhere; }}
h3 {{ font-size: 1rem; margin: 1.6rem 0 .2rem; }}
p {{ margin: .4rem 0; max-width: 52rem; overflow-wrap: anywhere; }}
a {{ color: var(--link); }}
code {{
  font: .88em/1.4 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  overflow-wrap: anywhere;
}}
i {{ font-style: normal; color: var(--soft); }}
.eyebrow {{ color: var(--soft); margin: 0 0 .2rem; }}
.lead {{ font-size: 1.05rem; margin: .2rem 0 1.4rem; }}
.none {{ color: var(--soft); }}
section {{
  background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 1.3rem 1.5rem 1.5rem;
  margin: 1.5rem 0;
}}
.head {{ display: flex; flex-wrap: wrap; gap: .3rem .8rem; align-items: baseline; }}
.badge {{
  font-size: .8rem; font-weight: 600; padding: .1rem .55rem; border-radius: 1rem;
  border: 1px solid currentColor; color: var(--soft);
}}
.badge.rewrite {{ color: var(--good); }}
.what {{ color: var(--soft); margin: .15rem 0 0; }}
.wide + .what {{ margin-top: .8rem; }}
.pictures {{ display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1.6rem 1.5rem; margin-top: 1rem; }}
figure {{ margin: 0; min-width: 0; }}
.pictures h3 {{ margin: 0 0 .35rem; }}
figcaption.title {{ font-weight: 600; margin-bottom: .35rem; }}
figcaption.note {{ color: var(--soft); font-size: .87rem; margin: .35rem 0 0 1.5rem; max-width: 33rem; }}
figcaption.note i {{ color: inherit; }}
.plot {{ display: grid; grid-template-columns: 1.5rem minmax(0, var(--w)); }}
.plot .y {{
  writing-mode: vertical-rl; transform: rotate(180deg); justify-self: start; align-self: center;
  white-space: nowrap;
}}
.plot .x {{ grid-column: 2; text-align: center; }}
.plot .x, .plot .y {{ color: var(--soft); font-size: .78rem; }}
.frame {{ position: relative; outline: 1px solid var(--rule); background: var(--card); }}
.frame img {{ position: absolute; inset: 0; width: 100%; height: 100%; image-rendering: pixelated; }}
.frame svg {{ position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }}
path {{ fill: none; stroke-width: 1.3px; vector-effect: non-scaling-stroke; }}
path.full {{ stroke: var(--full); }}
path.masked {{ stroke: var(--masked); stroke-dasharray: 5 2.5; }}
path.biased {{ stroke: var(--biased); stroke-dasharray: 1.6 1.8; stroke-width: 1.6px; }}
.legend {{
  list-style: none; display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; padding: 0; margin: .7rem 0 0;
  font-size: .87rem; color: var(--soft);
}}
.legend li {{ display: flex; align-items: center; gap: .45rem; }}
.legend svg {{ width: 26px; height: 14px; }}
.cell {{ width: 14px; height: 14px; border-radius: 2px; }}
.cell.needed {{ background: var(--needed); }}
.cell.spare {{ background: var(--spare); opacity: .85; }}
.facts {{
  margin: 0; display: grid; grid-template-columns: max-content minmax(0, 1fr); align-content: start;
  font-size: .93rem;
}}
.facts > div {{ display: contents; }}
.facts dt, .facts dd {{ border-top: 1px solid var(--faint); padding: .28rem 0; margin: 0; }}
.facts dt {{ color: var(--soft); padding-right: 1.4rem; }}
.facts dd {{ font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-size: .93rem; }}
th, td {{
  text-align: left; vertical-align: top; padding: .38rem .9rem .38rem 0;
  border-bottom: 1px solid var(--faint);
}}
th {{ color: var(--soft); font-weight: 500; border-bottom-color: var(--rule); vertical-align: bottom; }}
th.n, td.n {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }}
th:last-child, td:last-child {{ padding-right: 0; }}
td {{ overflow-wrap: break-word; max-width: 34rem; }}
td:first-child {{ min-width: 7rem; }}
details {{ margin-top: 1rem; font-size: .9rem; }}
summary {{ cursor: pointer; color: var(--soft); }}
@media screen and (max-width: 860px) {{
  body {{ padding: 1.2rem .8rem 3rem; }}
  section {{ padding: 1rem; }}
  .pictures {{ grid-template-columns: minmax(0, 1fr); }}
}}
@media print {{
  :root {{ font-size: 11.5px; }}
  body {{ padding: 0; font-size: 11.5px; background: none; }}
  section {{ border: 0; padding: .5rem 0; }}
  section[id] {{ break-before: page; }}
  .plot {{ grid-template-columns: 1.5rem minmax(0, min(var(--w), 72mm)); }}
  .wide {{ overflow: visible; }}
  th, td {{ padding-right: .6rem; }}
  figure, tr, .facts > div {{ break-inside: avoid; }}
  h2, h3, .head, figcaption.title {{ break-after: avoid; }}
  img, svg, .cell {{ print-color-adjust: exact; -webkit-print-color-adjust: exact; }}
}}
"""
