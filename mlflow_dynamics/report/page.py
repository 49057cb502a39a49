"""Makes the page, one HTML file of figures and tables that needs no network, and a picture of each figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import altair as alt
import jinja2
import vl_convert

from mlflow_dynamics.report.bundle import packed, vega_bundle
from mlflow_dynamics.report.figures import Figure
from mlflow_dynamics.report.panels import DAY, NIGHT, by_day

CONFIG: Final[Mapping[str, Any]] = {
    "background": "transparent",
    "view": {"stroke": "transparent"},
    "axis": {
        "labelColor": "var(--muted)",
        "titleColor": "var(--muted)",
        "titleFontWeight": "normal",
        "gridColor": "var(--grid)",
        "domainColor": "var(--muted)",
        "tickColor": "var(--muted)",
    },
    "axisY": {"minExtent": 36},
    "legend": {"labelColor": "var(--ink)", "titleColor": "var(--muted)", "labelLimit": 260},
    "title": {"color": "var(--ink)", "anchor": "start", "fontWeight": "normal"},
    "range": {"category": [f"var(--{name})" for name in ("one", "two", "three", "four", "five", "six")]},
    "point": {"color": "var(--one)"},
}
"""The configuration of all charts. Its colours are variables of the page, so that they follow day and night."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A section of the page with a table. A row's first cell is its header. A cell may be a link: (text, address)."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | tuple[str, str]]]
    caption: str = ""
    folded: bool = False


_ENVIRONMENT: Final = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)

_TEMPLATE: Final = _ENVIRONMENT.from_string(
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; {% for name, colour in day.items() %}--{{ name }}: {{ colour }}; {% endfor %}}
@media (prefers-color-scheme: dark) {
  :root { {% for name, colour in night.items() %}--{{ name }}: {{ colour }}; {% endfor %}}
}
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1500px;
  margin: 0 auto; padding: 8px 14px; }
h1 { font-size: 1.3em; margin: 0.3em 0; overflow-wrap: anywhere; }
h2 { font-size: 1.05em; margin: 0; display: inline; }
h3 { font-size: 0.95em; margin: 0; }
p { margin: 0.1em 0 0.4em; }
.verdict { font-weight: 600; }
.caption, figcaption { color: var(--muted); font-size: 0.87em; overflow-wrap: anywhere; }
a { color: var(--link); }
nav a { margin-right: 1.2em; }
section { margin-top: 0.8em; }
details { border-top: 1px solid var(--grid); padding: 0.5em 0; }
section + details { margin-top: 1em; }
summary { cursor: pointer; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 320px), 1fr)); gap: 12px 22px; }
@media (min-width: 1100px) { .panels { grid-template-columns: repeat(3, 1fr); } }
figure { margin: 0; min-width: 0; }
figure:only-child { grid-column: 1 / -1; }
.chart { width: 100%; min-width: 0; }
.vega-embed { width: 100%; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9em; }
th, td { padding: 3px 14px 3px 0; border-bottom: 1px solid var(--grid); vertical-align: top; text-align: left;
  font-weight: normal; max-width: 22em; overflow-wrap: break-word; font-variant-numeric: tabular-nums; }
thead th { color: var(--muted); }
</style>
</head>
<body>
<header>
<h1>{{ title }}</h1>
{% for line in lines %}<p class="{{ 'verdict' if loop.first else 'caption' }}">{{ line }}</p>
{% endfor %}
{% if links %}
<nav aria-label="elsewhere">
{% for label, address in links.items() %}<a href="{{ address }}" target="_blank" rel="noopener">{{ label }}</a>
{% endfor %}
</nav>
{% endif %}
</header>
<main>
{% for part in parts %}
{% set tag, head = ("details", "summary") if part.folded else ("section", "div") %}
<{{ tag }}>
<{{ head }}><h2>{{ part.title }}</h2></{{ head }}>
{% if part.caption %}<p class="caption">{{ part.caption }}</p>
{% endif %}
{% if part.rows is defined %}
<div class="scroll" tabindex="0" role="region" aria-label="{{ part.title }}">
<table>
<thead><tr>{% for cell in part.header %}<th scope="col">{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in part.rows %}<tr>{% for cell in row %}
{% set open, close = ('<th scope="row">', "</th>") if loop.first else ("<td>", "</td>") %}
{{ open | safe }}
{%- if cell is string %}{{ cell }}{% else %}<a href="{{ cell[1] }}" target="_blank" rel="noopener">{{ cell[0] }}</a>
{%- endif %}{{ close | safe }}
{%- endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% elif part.panels %}
<div class="panels">
{% for panel in part.panels %}<figure>
{% if panel.title %}<h3>{{ panel.title }}</h3>{% endif %}
<div class="chart" id="{{ part.name }}-{{ loop.index0 }}"></div>
{% if panel.caption %}<figcaption>{{ panel.caption }}</figcaption>{% endif %}
</figure>
{% endfor %}
</div>
{% endif %}
</{{ tag }}>
{% endfor %}
</main>
<script type="text/plain" id="bundle">{{ bundle }}</script>
<script type="text/plain" id="specs">{{ specs }}</script>
<script type="module">
// MLflow's viewer lets no link out of its frame, and shows the run around it.
for (const nav of document.querySelectorAll("nav")) nav.hidden = window !== window.parent;

const unpacked = id => {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), one => one.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
};
try {
  const [bundle, specs] = await Promise.all(["bundle", "specs"].map(unpacked));
  document.head.append(Object.assign(document.createElement("script"), {textContent: bundle}));
  const charts = JSON.parse(specs);
  const theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const options = {actions: false, renderer: "svg", config: {{ config | tojson }}, tooltip: {theme}};
  const draw = part => {
    for (const chart of part.querySelectorAll(".chart:empty"))
      vegaEmbed(chart, charts[chart.id], options).catch(console.error);
  };
  document.querySelectorAll("section").forEach(draw);
  for (const part of document.querySelectorAll("details")) part.addEventListener("toggle", () => draw(part));
} catch (error) {
  document.querySelector("main").prepend(`The charts cannot be drawn by this browser: ${error}`);
}
</script>
</body>
</html>
"""
)


def page(title: str, lines: Sequence[str], parts: Sequence[Figure | Table], links: Mapping[str, str]) -> str:
    """Return the page as HTML. Every text is escaped.

    Args:
        title: the heading.
        lines: the sentences below the heading. The first one is in bold.
        parts: figures and tables, in this order.
        links: label -> address.
    """
    specs = {
        f"{part.name}-{i}": panel.chart.to_dict()
        for part in parts
        if isinstance(part, Figure)
        for i, panel in enumerate(part.panels)
    }
    return _TEMPLATE.render(
        title=title,
        lines=lines,
        parts=parts,
        links=links,
        day=DAY,
        night=NIGHT,
        config=CONFIG,
        bundle=vega_bundle(),
        specs=packed(json.dumps(specs, separators=(",", ":"))),
    )


def picture(figure: Figure) -> bytes:
    """Return a figure as PNG, drawn in this process."""
    png: bytes = vl_convert.vegalite_to_png(specification(figure))
    return png


def specification(figure: Figure) -> str:
    """Return the Vega-Lite specification of a figure's picture, in the colours of day."""
    charts = []
    config: dict[str, Any] = {**CONFIG, "background": DAY["paper"]}
    for panel in figure.panels:
        chart = panel.chart.copy().properties(width=figure.width)
        if chart.config is not alt.Undefined:  # which a chart beside others cannot have
            config["legend"] = {**config.get("legend", {}), **chart.config.to_dict().get("legend", {})}
            chart.config = alt.Undefined
        if panel.title:
            chart.title = panel.title
        charts.append(chart)
    whole: Any = charts[0]
    if len(charts) > 1:
        whole = alt.concat(*charts, columns=figure.columns)
        whole = whole.resolve_scale(color="independent", strokeDash="independent")
    return by_day(json.dumps(whole.to_dict() | {"config": config}))
