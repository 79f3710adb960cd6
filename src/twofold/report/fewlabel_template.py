"""The HTML of a few-label experiment's page between head and end (see `frame`), and what its pictures show."""

CAPTIONS = {
    "stages": "Accuracy on test images, which no stage has learned from; lines: 95 % intervals (Wilson).",
    "confusion": "What the images of each class were pseudo-labelled as. The truth is compared here and nowhere else: "
    "no stage has seen it.",
    "confidence": "How sure the pseudo labels are. Points: how many of such labels are right, with 95 % intervals; on "
    "the dashed line confidence is what it says, below it the classifier is too sure.",
    "unchecked": "How sure the pseudo labels are. Whether they are right is not known.",
    "samples": "Generated images, a row for each class, in the order of their seeds: none was picked out.",
    "most": "The images whose pseudo labels are surest.",
    "least": "And those whose pseudo labels are least sure.",
}

BODY = """\
{% if "stages" in sections %}
<section aria-labelledby="stages">
<h2 id="stages">{{ sections.stages }}</h2>
{{ figure("stages", captions.stages, "chart") }}
<table>
<thead><tr><th scope="col">Classifier</th><th scope="col">Accuracy</th><th scope="col">Images</th>
<th scope="col">What it learned from</th></tr></thead>
<tbody>
{% for row in stages %}<tr><th scope="row">{{ row.title }}</th>
<td class="number" data-label="Accuracy"><span>{{ row.value }}</span>
{%- if row.interval %}<small>{{ row.interval }}</small>{% endif %}</td>
<td class="number" data-label="Images"><span>{{ row.n }}</span></td><td class="soft">{{ row.meaning }}</td></tr>
{% endfor %}</tbody>
</table>
{% if rounds %}<h3>Rounds</h3>
<table>
<thead><tr><th scope="col">Round</th>{% for name in rounds[0] %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in rounds %}<tr><th scope="row">{{ loop.index }}</th>
{% for name, value in row.items() %}<td class="number" data-label="{{ name }}">{{ value }}</td>{% endfor %}</tr>
{% endfor %}</tbody>
</table>{% endif %}
</section>
{% endif %}
{% if "pseudo" in sections %}
<section aria-labelledby="pseudo">
<h2 id="pseudo">{{ sections.pseudo }}</h2>
{% for line in pseudo %}<p>{{ line }}</p>
{% endfor %}
<div class="pair">
{{ figure("confusion", captions.confusion, "chart") }}
{{ figure("confidence", captions.confidence if checked else captions.unchecked, "chart") }}
</div>
{% if pairs %}<table>
<thead><tr><th scope="col">Mistaken most often</th><th scope="col">For</th><th scope="col">Images</th>
<th scope="col">Share of the class</th></tr></thead>
<tbody>
{% for row in pairs %}<tr><th scope="row">{{ row[0] }}</th><td data-label="For">{{ row[1] }}</td>
<td class="number" data-label="Images">{{ row[2] }}</td><td class="number" data-label="Share">{{ row[3] }}</td></tr>
{% endfor %}</tbody>
</table>{% endif %}
{{ figure("most", captions.most) }}
{{ figure("least", captions.least) }}
</section>
{% endif %}
{% if "samples" in sections %}
<section aria-labelledby="samples">
<h2 id="samples">{{ sections.samples }}</h2>
{{ figure("samples", captions.samples) }}
{% if more_classes %}<p class="soft">The first classes; there are {{ more_classes }} more.</p>{% endif %}
</section>
{% endif %}
"""
