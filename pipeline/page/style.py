"""The pages' style sheet: light and dark, phone and paper, contrast 4.5 and more."""

COLOURS_LIGHT = {
    "bg": "#ffffff",
    "fg": "#1b1f24",
    "muted": "#525a63",
    "line": "#c4ccd4",
    "card": "#f4f6f8",
    "link": "#0b57b0",
    "pass-bg": "#d9f5e0",
    "pass": "#0a5227",
    "fail-bg": "#ffe5e2",
    "fail": "#9a0f22",
    "warn-bg": "#fff3c4",
    "warn": "#5f4300",
    "torch": "#b0440f",
    "paddle": "#1a56b4",
    "floor": "#5d6670",
    "grid": "#dfe4e9",
}
COLOURS_DARK = {
    "bg": "#0f1419",
    "fg": "#e6ebf0",
    "muted": "#a9b3bd",
    "line": "#3a444e",
    "card": "#182028",
    "link": "#86b8ff",
    "pass-bg": "#0d3a1e",
    "pass": "#9ae6b4",
    "fail-bg": "#4c1018",
    "fail": "#ffb3b8",
    "warn-bg": "#463500",
    "warn": "#ffdf80",
    "torch": "#ff9c66",
    "paddle": "#86b8ff",
    "floor": "#a9b3bd",
    "grid": "#29323b",
}


def _variables(colours: dict[str, str]) -> str:
    return ";".join(f"--{name}:{value}" for name, value in colours.items())


STYLE = (
    f"""
:root{{{_variables(COLOURS_LIGHT)}}}
@media screen and (prefers-color-scheme:dark){{:root{{{_variables(COLOURS_DARK)}}}}}
"""
    + """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.5 system-ui,sans-serif;
overflow-wrap:anywhere}
header,main,footer,nav{max-width:70rem;margin:0 auto;padding:0 1rem}
h1{font-size:1.35rem;line-height:1.25;margin:1.2rem 0 .2rem}
h2{font-size:1.25rem;line-height:1.3;margin:2.4rem 0 .6rem;border-bottom:1px solid var(--line)}
h3{font-size:1.02rem;margin:1.4rem 0 .4rem}
p,ul,ol,dl{margin:.5rem 0}
main>ul{padding-left:1.2rem}
a{color:var(--link)}
a:focus-visible,summary:focus-visible,.scroll:focus-visible{outline:3px solid var(--link);
outline-offset:2px}
code,kbd{font:.9em/1.4 ui-monospace,monospace}
pre{background:var(--card);border:1px solid var(--line);border-radius:.3rem;padding:.6rem;
white-space:pre-wrap;font:.85rem/1.45 ui-monospace,monospace;margin:.5rem 0}
.skip{position:absolute;left:-100rem;background:var(--bg);padding:.5rem}
.skip:focus{left:.5rem;top:.5rem;z-index:1}
.muted,caption,figcaption{color:var(--muted)}
.verdict{border:2px solid currentColor;border-radius:.5rem;padding:.8rem 1rem;margin:.8rem 0;
print-color-adjust:exact;-webkit-print-color-adjust:exact}
.verdict p{margin:.1rem 0}
.verdict .word{font-size:2rem;font-weight:700;line-height:1.2}
.pass{background:var(--pass-bg);color:var(--pass)}
.fail{background:var(--fail-bg);color:var(--fail)}
.warn{background:var(--warn-bg);color:var(--warn)}
.badge{display:inline-block;border:1px solid currentColor;border-radius:.25rem;padding:0 .35rem;
font-weight:600;white-space:nowrap;font-size:.85rem;print-color-adjust:exact;
-webkit-print-color-adjust:exact}
nav ul{list-style:none;padding:0;display:flex;flex-wrap:wrap;gap:.2rem 1rem}
nav a{display:inline-block;padding:.25rem 0}
.scroll{overflow-x:auto;margin:.5rem 0}
details .scroll{max-height:32rem;overflow-y:auto}
table{border-collapse:collapse;font-size:.85rem;width:100%}
caption{text-align:left;padding:.2rem 0}
th,td{overflow-wrap:normal;text-align:left;vertical-align:top;padding:.25rem .5rem;
border-bottom:1px solid var(--line)}
thead th{position:sticky;top:0;background:var(--card);border-bottom:2px solid var(--line)}
tbody th{font-weight:400}thead th.r{text-align:right}
td{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td.w{text-align:left;white-space:normal;overflow-wrap:anywhere;min-width:5.5rem}
details{margin:.4rem 0}
summary{cursor:pointer;padding:.3rem 0;color:var(--link)}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:1rem}
figure{margin:.5rem 0;min-width:0}
figcaption{font-size:.85rem}
svg{display:block;width:100%;height:auto;max-width:38rem;background:var(--bg)}
svg text{font:11px system-ui,sans-serif;fill:var(--fg)}
svg .axis{stroke:var(--line)}svg .grid{stroke:var(--grid)}
svg path,svg line{fill:none}
svg .torch{stroke:var(--torch)}svg .paddle{stroke:var(--paddle)}svg .bound{stroke:var(--fail)}
svg .floor{stroke:var(--floor)}svg .bad{stroke:var(--fail);stroke-width:2}
svg .dots{stroke-width:3.6;stroke-linecap:round}svg .ticks{stroke-width:1.4}
svg .line{stroke-width:1.6}svg .dashed{stroke-dasharray:5 3}
svg rect.torch{fill:var(--torch);stroke:none}svg rect.paddle{fill:var(--paddle);stroke:none}
svg .limit{fill:var(--floor);opacity:.16;stroke:none}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(8.5rem,12.5rem));gap:.6rem;
align-items:start}
.pictures figure{margin:0}
.pictures img{display:block;width:100%;height:auto;image-rendering:pixelated;
border:1px solid var(--line)}
dl.facts{display:grid;grid-template-columns:minmax(7rem,max-content) 1fr;gap:.15rem 1rem}
dl.facts dt{color:var(--muted)}dl.facts dd{margin:0;min-width:0}
.case{border-left:4px solid var(--fail);padding-left:.8rem;margin:1rem 0}
footer{padding:2rem 1rem;color:var(--muted)}
@media (max-width:30rem){dl.facts{grid-template-columns:1fr}dl.facts dd{margin-bottom:.4rem}
th,td{padding:.2rem .35rem}}
@media print{body{font-size:10pt}.skip,nav{display:none}.scroll{overflow:visible;max-height:none}
thead th{position:static}table{font-size:7.5pt}th,td{padding:1pt 3pt}
tbody th,td.w{overflow-wrap:anywhere;min-width:0}figcaption{font-size:8pt}
.figures{grid-template-columns:1fr 1fr}figure,tr,.case,.verdict{break-inside:avoid}
h2,h3{break-after:avoid}a{color:inherit;text-decoration:none}details:not([open]){display:none}}
"""
)
