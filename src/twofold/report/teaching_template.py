"""The HTML of a distillation's page between head and end (see `frame`), and what its pictures show."""

CAPTIONS = {
    "students": "On test images, which no student has learned from; lines: 95 % intervals over these images. Another "
    "seed of the training would move the bars as well.",
    "loss": "How far the student's maps are from the teacher's, on held-out images.",
    "levels": "How often the teacher was asked at each noise level, in the end.",
    "iou": "Pixels that both the student and the truth give a class, as a share of those that either gives it.",
    "masks": "Test images, what is true of them, and what the students say. Evenly spread over the "
    "test part: none was picked out.",
    "points": "Rings: where the points are. Dots: where the student says they are. Test images, evenly spread: none "
    "was picked out.",
    "confusion": "{}: what the images of each class were named.",
    "errors": "The share of test images whose error is at most so large, up to what counts as a failure. The higher "
    "the curve, the better; the area under it is the AUC.",
}

EXTRA_CSS = """
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 1.25rem .9rem;
  list-style: none; padding: 0; margin: 1rem 0; }
.cards img { display: block; width: 9rem; max-width: 100%; height: auto; image-rendering: pixelated; }
.cards p { margin: .15rem 0; font-size: .9375rem; }
.cards .wrong { color: var(--bad); }
td.number .wraps { white-space: normal; max-width: 14rem; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; list-style: none; padding: 0; margin: .5rem 0;
  font-size: .9375rem; }
.legend i { display: inline-block; width: .9em; height: .9em; margin-right: .4em; border: 1px solid var(--line);
  vertical-align: -.1em; }
@media (max-width: 44rem) { td.number { column-gap: .75rem; } }
"""

BODY = """\
{% macro score(name, value, interval) -%}
<td class="number" data-label="{{ name }}"><span>{{ value }}</span>
{%- if interval %}<small>{{ interval }}</small>{% endif %}</td>
{%- endmacro %}
{% if "students" in sections %}
<section aria-labelledby="students">
<h2 id="students">{{ sections.students }}</h2>
{{ figure("students", captions.students, "chart") }}
{% if measures | length > 1 %}<table>
<thead><tr><th scope="col">Student</th>
{% for name in measures %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in scores %}<tr><th scope="row">{{ row.title }}</th>
{% for name in measures %}{{ score(name, *row.cells[loop.index0]) }}
{% endfor %}</tr>
{% endfor %}</tbody>
</table>
<h3>What each took</h3>{% endif %}
<table>
<thead><tr><th scope="col">Student</th>
{%- if measures | length == 1 %}<th scope="col">{{ measures[0] }}</th>{% endif %}
<th scope="col">Parameters</th><th scope="col">Images trained on</th>
<th scope="col">Learning rate</th><th scope="col">Computing</th><th scope="col">Time</th></tr></thead>
<tbody>
{% for row in efforts %}<tr><th scope="row">{{ row.title }}</th>
{% if measures | length == 1 %}{{ score(measures[0], *scores[loop.index0].cells[0]) }}{% endif %}
<td class="number" data-label="Parameters">{{ row.parameters }}</td>
<td class="number" data-label="Images trained on"><span>{{ row.images }}</span>
{%- if row.before %}<small>{{ row.before }}</small>{% endif %}</td>
<td class="number" data-label="Learning rate"><span>{{ row.lr }}</span>
{%- if row.tried %}<small class="wraps">{{ row.tried }}</small>{% endif %}</td>
<td class="number" data-label="Computing">{{ row.flops }}</td>
<td class="number" data-label="Time">{{ row.seconds }}</td></tr>
{% endfor %}</tbody>
</table>
<p class="soft">An image counts each time it is trained on.
{%- if efforts | selectattr("before") | list %} Of the taught student, computing and time hold those of its teaching.
{%- endif %}</p>
</section>
{% endif %}
{% if "teaching" in sections %}
<section aria-labelledby="teaching">
<h2 id="teaching">{{ sections.teaching }}</h2>
{% for line in taught %}<p>{{ line }}</p>
{% endfor %}
{% if taught_facts %}{{ facts(taught_facts) }}{% endif %}
<div class="pair">
{{ figure("loss", captions.loss, "chart") }}
{{ figure("levels", captions.levels, "chart") }}
</div>
</section>
{% endif %}
{% if "answers" in sections %}
<section aria-labelledby="answers">
<h2 id="answers">{{ sections.answers }}</h2>
{% if confusions %}<div class="pair">
{% for name, title in confusions %}{{ figure(name, title, "chart") }}
{% endfor %}</div>
{% endif %}
{% for title, pairs in mistakes %}{% if pairs %}<details><summary>{{ title }}: what is mistaken most often</summary>
<table>
<thead><tr><th scope="col">Class</th><th scope="col">Taken for</th><th scope="col">Images</th>
<th scope="col">Share of the class</th></tr></thead>
<tbody>
{% for row in pairs %}<tr><th scope="row">{{ row[0] }}</th><td class="number" data-label="Taken for">{{ row[1] }}</td>
<td class="number" data-label="Images">{{ row[2] }}</td><td class="number" data-label="Share">{{ row[3] }}</td></tr>
{% endfor %}</tbody>
</table></details>{% endif %}{% endfor %}
{% if cards %}<h3>Some test images</h3>
<ul class="cards">
{% for card in cards %}<li><img src="{{ card.image.source }}" width="{{ card.image.width }}"
 height="{{ card.image.height }}" alt="{{ card.image.alt }}">
<p><strong>{{ card.truth }}</strong></p>
{% for student, name, right in card.answers %}<p class="{{ "wrong" if right is false else "soft" }}">
{%- if right is not none %}{{ "✓" if right else "✗" }} {% endif %}{{ student }}: {{ name }}</p>
{% endfor %}</li>
{% endfor %}</ul>
<p class="soft">Below each: what it is, and what the students say. Evenly spread over the test part: none was picked
out.</p>
{% endif %}
{% if images.masks %}{{ figure("masks", captions.masks) }}
<ul class="legend">
{% for name, colour in legend %}<li><i style="background: {{ colour }}"></i>{{ name }}</li>
{% endfor %}</ul>
{% endif %}
{{ figure("iou", captions.iou, "chart") }}
{% if classes %}<details><summary>All {{ classes | length }} classes</summary><table>
<thead><tr><th scope="col">Class</th>
{% for name in class_columns %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in classes %}<tr><th scope="row">{{ row[0] }}</th>
{% for name in class_columns %}<td class="number" data-label="{{ name }}">{{ row[1][loop.index0] }}</td>
{% endfor %}</tr>
{% endfor %}</tbody>
</table></details>{% endif %}
{{ figure("points", captions.points) }}
{{ figure("errors", captions.errors, "chart") }}
{% if normaliser %}<p>{{ normaliser }}</p>{% endif %}
{% if subsets %}<table>
<thead><tr><th scope="col">Images with</th><th scope="col">Images</th>
{% for name in subset_columns %}<th scope="col">{{ name }}, NME</th>{% endfor %}</tr></thead>
<tbody>
{% for row in subsets %}<tr><th scope="row">{{ row.name }}</th>
<td class="number" data-label="Images">{{ row.images }}</td>
{% for name in subset_columns %}<td class="number" data-label="{{ name }}, NME">{{ row.cells[loop.index0] }}</td>
{% endfor %}</tr>
{% endfor %}</tbody>
</table>{% endif %}
</section>
{% endif %}
{% if "next" in sections %}
<section aria-labelledby="next">
<h2 id="next">{{ sections.next }}</h2>
{% for command, meaning in next %}<p>{{ meaning }}:</p>
<pre class="command">{{ command }}</pre>
{% endfor %}
</section>
{% endif %}
"""
