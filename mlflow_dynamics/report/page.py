"""The page: figures and a table in one HTML file that needs no network, and a picture of each figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import altair as alt
import jinja2
import vl_convert

from mlflow_dynamics.report.bundle import vega_bundle
from mlflow_dynamics.report.figures import Figure

_ENVIRONMENT: Final = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
_ENVIRONMENT.policies["json.dumps_kwargs"] = {"separators": (",", ":")}

_TEMPLATE: Final = _ENVIRONMENT.from_string(
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 0 auto; padding: 8px 12px; }
h1 { font-size: 1.3em; margin: 0.4em 0; overflow-wrap: anywhere; }
h2 { font-size: 1.05em; margin: 1.6em 0 0; }
p { margin: 0.2em 0 0.6em; color: #555; }
.chart { width: 100%; }
table { border-collapse: collapse; font-size: 0.9em; display: block; overflow-x: auto; }
td { padding: 2px 12px 2px 0; border-bottom: 1px solid #eee; vertical-align: top; max-width: 16em;
  overflow-wrap: break-word; }
td:last-child { max-width: none; }
nav a { margin-right: 1.2em; }
</style>
<script>{{ bundle | safe }}</script>
</head>
<body>
<h1>{{ title }}</h1>
{% for line in lines %}<p>{{ line }}</p>
{% endfor %}
<nav aria-label="elsewhere">
{% for label, address in links.items() %}<a href="{{ address }}" target="_blank" rel="noopener">{{ label }}</a>
{% endfor %}
</nav>
{% for figure in figures %}
<h2>{{ figure.title }}</h2>
<p>{{ figure.caption }}</p>
{% for chart in figure.charts %}<div class="chart" id="{{ figure.name }}-{{ loop.index0 }}"></div>
{% endfor %}
{% endfor %}
{% for heading, rows in tables.items() %}
<h2>{{ heading }}</h2>
<table>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table>
{% endfor %}
<script>
// MLflow's viewer lets no link out of its frame, and shows the run around it.
document.querySelector("nav").hidden = window !== window.parent;
const specs = {{ specs | tojson }};
for (const [id, spec] of Object.entries(specs)) {
  vegaEmbed("#" + id, spec, {actions: false, renderer: "svg"}).catch(console.error);
}
</script>
</body>
</html>
"""
)


def page(
    title: str,
    lines: Sequence[str],
    figures: Sequence[Figure],
    tables: Mapping[str, Sequence[Sequence[str]]],
    links: Mapping[str, str],
) -> str:
    """The page as HTML; every text in it comes out as text.

    Args:
        title: the heading.
        lines: sentences below it.
        figures: drawn in this order.
        tables: heading -> rows of cells, below the figures.
        links: what is linked -> address.
    """
    specs = {
        f"{figure.name}-{i}": chart.to_dict() for figure in figures for i, chart in enumerate(figure.charts)
    }
    return _TEMPLATE.render(
        title=title,
        lines=lines,
        figures=figures,
        tables=tables,
        links=links,
        specs=specs,
        bundle=vega_bundle(),
    )


def picture(figure: Figure) -> bytes:
    """A figure as PNG, drawn here."""
    png: bytes = vl_convert.vegalite_to_png(specification(figure))
    return png


def specification(figure: Figure) -> str:
    """A figure as Vega-Lite, for its picture."""
    charts = [chart.copy().properties(width=figure.width) for chart in figure.charts]
    for chart in charts:
        chart.config = alt.Undefined
        if figure.height is not None:
            chart.height = figure.height
    whole: Any = charts[0]
    if len(charts) > 1:
        beside = alt.concat(*charts, columns=figure.columns).resolve_scale(color="independent")
        whole = beside.configure_axisY(minExtent=50 if figure.columns == 1 else 0)
    return str(whole.to_json())
