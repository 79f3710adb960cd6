"""What the pages of experiments share: the head, the end (parts, data, settings), and how they are written.

A page is a Jinja template with everything escaped, in one HTML file that loads nothing; see `template` for its CSS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import atomic_bytes
from ..settings.text import dump_yaml
from .page import _inlined
from .template import CSS

PAGE_NAME = "report.html"
MADE = {"made": "made", "found": "there already", "redone": "made again"}
COMMANDS = "pre.command { white-space: pre-wrap; overflow-wrap: anywhere; }\n"


def assembled(
    body: str,
    title: str,
    summary: Sequence[str],
    sections: Mapping[str, tuple[str, Any]],
    pictures: Mapping[str, bytes],
    alt: Mapping[str, str],
    data: Mapping[str, str],
    result: Mapping[str, Any],
    extra_css: str = "",
    **context: Any,
) -> str:
    """A page as text. body: the template of its own sections. context: what that reads besides.

    extra_css: rules that it needs besides.
    sections: {anchor: (heading, whether there is something to show)}. alt: for each picture there may be, what a reader
    who cannot see it needs to know. data: names and values. result: its parts, settings, command and versions are
    shown.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    parts = [part_row(row) for row in result.get("parts") or ()]
    there = dict(sections) | {
        "parts": ("What was done", parts),
        "data": ("Data", True),
        "settings": ("Settings", result.get("settings")),
        "reproduce": ("How to reproduce", result.get("command")),
    }
    return environment.from_string(HEAD + body + TAIL).render(
        css=Markup(CSS + COMMANDS + extra_css),
        title=title,
        summary=summary,
        sections={name: heading for name, (heading, present) in there.items() if present},
        images=dict.fromkeys(alt) | {name: _inlined(png, alt[name]) for name, png in pictures.items()},
        parts=parts,
        data=data,
        settings=dump_yaml(result.get("settings") or {}),
        command=result.get("command"),
        versions=result.get("versions") or {},
        **context,
    )


def written(folder: Path, page: str, pictures: Mapping[str, bytes]) -> Path:
    """Puts report.html, and its pictures as figures/*.png, into the folder; returns the page's path. Atomic."""
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for name, png in pictures.items():
        atomic_bytes(folder / "figures" / f"{name}.png", png)
    path = folder / PAGE_NAME
    atomic_bytes(path, page)
    return path


def part_row(row: Mapping[str, Any]) -> dict[str, str]:
    """A part of an experiment, as its result tells of it, in words."""
    made, seconds = str(row.get("made", "")), float(row.get("seconds") or 0)
    known = row.get("seconds") is not None and made != "found"
    return {
        "name": str(row["name"]),
        "made": MADE.get(made, made),
        "because": str(row.get("because") or ""),
        "seconds": "" if not known else f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.1f}",
        "folder": str(row.get("folder") or ""),
        "hash": str(row.get("hash") or ""),
    }


HEAD = """\
{% macro figure(name, caption, kind="grid") -%}
{% if images[name] %}<figure class="{{ kind }}"><img src="{{ images[name].source }}" width="{{ images[name].width }}"
 height="{{ images[name].height }}" alt="{{ images[name].alt }}"><figcaption>{{ caption }}</figcaption></figure>
{%- endif %}{%- endmacro %}
{% macro facts(pairs) -%}
<dl>{% for name, value in pairs.items() %}<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
{%- endmacro %}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ css }}</style>
</head>
<body>
<header>
<h1>{{ title }}</h1>
{% for line in summary %}<p>{{ line }}</p>
{% endfor %}
<nav aria-label="Sections"><ul>
{% for name, heading in sections.items() %}<li><a href="#{{ name }}">{{ heading }}</a></li>
{% endfor %}</ul></nav>
</header>
<main>
"""

TAIL = """\
{% if "parts" in sections %}
<section aria-labelledby="parts">
<h2 id="parts">{{ sections.parts }}</h2>
<table>
<thead><tr><th scope="col">Part</th><th scope="col">This time</th><th scope="col">Seconds</th>
<th scope="col">Folder</th><th scope="col">Content</th></tr></thead>
<tbody>
{% for row in parts %}<tr><th scope="row">{{ row.name }}</th>
<td data-label="This time">{{ row.made }}{% if row.because %}: {{ row.because }}{% endif %}</td>
<td class="number" data-label="Seconds">{{ row.seconds }}</td><td class="soft">{{ row.folder }}</td>
<td class="number soft" data-label="Content">{{ row.hash }}</td></tr>
{% endfor %}</tbody>
</table>
</section>
{% endif %}
<section aria-labelledby="data">
<h2 id="data">{{ sections.data }}</h2>
{{ facts(data) }}
</section>
{% if "settings" in sections %}
<section aria-labelledby="settings">
<h2 id="settings">{{ sections.settings }}</h2>
<details><summary>All settings</summary><pre>{{ settings }}</pre></details>
</section>
{% endif %}
{% if "reproduce" in sections %}
<section aria-labelledby="reproduce">
<h2 id="reproduce">{{ sections.reproduce }}</h2>
<pre class="command">{{ command }}</pre>
{{ facts(versions) }}
</section>
{% endif %}
</main>
<footer><p>This page is one file: it loads nothing and sends nothing.</p></footer>
</body>
</html>
"""
