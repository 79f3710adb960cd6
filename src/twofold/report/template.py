"""The page's HTML (a Jinja template, everything escaped) and its CSS: no scripts, nothing loaded from elsewhere."""

CSS = """
:root { color-scheme: light dark; --page: #fcfcfb; --ink: #1d2126; --soft: #5b6168; --line: #dcdedf; --card: #ffffff;
  --accent: #1b6ca8; --good: #1b6ca8; --bad: #b34700; }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --ink: #e7e9ea; --soft: #a3a9af; --line: #33383d;
  --card: #1b1f23; --accent: #6db3e8; --good: #6db3e8; --bad: #f19a4c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 1rem/1.55 system-ui, "DejaVu Sans", sans-serif;
  overflow-wrap: break-word; }
main, header, footer { max-width: 62rem; margin: 0 auto; padding: 0 1rem; }
header { padding-top: 2rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .25rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0; }
p { margin: .4rem 0; max-width: 44rem; }
.soft, figcaption, footer { color: var(--soft); }
.overall { font-size: 1.125rem; font-weight: 600; }
nav ul { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; list-style: none; margin: .8rem 0 0; padding: 0; }
nav a { color: var(--accent); display: inline-block; padding: .3rem 0; }
.criteria { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr)); gap: .75rem;
  list-style: none; padding: 0; margin: 1rem 0; }
.criteria li { background: var(--card); border: 1px solid var(--line); border-left: 4px solid var(--soft);
  border-radius: 4px; padding: .75rem .9rem; }
.criteria .passed { border-left-color: var(--good); }
.criteria .missed { border-left-color: var(--bad); border-left-style: double; border-left-width: 6px; }
.criteria .state { float: right; margin-left: .75rem; font-size: .875rem; font-weight: 600; }
.passed .state { color: var(--good); }
.missed .state { color: var(--bad); }
.value { font-size: 1.5rem; font-weight: 600; line-height: 1.3; }
.value small { font-size: .875rem; font-weight: 400; color: var(--soft); display: block; }
.criteria p { font-size: .9375rem; }
figure { margin: 1rem 0; }
figure img { display: block; max-width: 100%; height: auto; }
figure.chart img { width: min(100%, 32rem); }
figcaption { font-size: .9375rem; margin-top: .4rem; max-width: 44rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 0 1.5rem; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; font-size: .9375rem; }
th, td { text-align: left; vertical-align: top; padding: .5rem .9rem .5rem 0; border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 600; }
td.number { white-space: nowrap; font-variant-numeric: tabular-nums; }
td.number small { display: block; color: var(--soft); }
td img { display: block; max-width: 100%; height: auto; }
.middle td, .middle th { vertical-align: middle; }
td.wide { width: 40%; }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .2rem 1.25rem; margin: .75rem 0; }
dt { color: var(--soft); }
dd { margin: 0; min-width: 0; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 4px; padding: .75rem .9rem;
  overflow-x: auto; font: .875rem/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
summary { cursor: pointer; color: var(--accent); padding: .4rem 0; }
footer { font-size: .875rem; padding-top: 2rem; padding-bottom: 3rem; }
@media (max-width: 44rem) {
  table, tbody, tr, td, th[scope=row] { display: block; width: auto; }
  thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  tr { padding: .7rem 0; border-bottom: 1px solid var(--line); }
  td, th[scope=row] { border: 0; padding: .1rem 0; }
  td.number { display: grid; grid-template-columns: 9.5rem 1fr; white-space: normal; }
  td.number::before { content: attr(data-label); color: var(--soft); }
  td.number small { grid-column: 2; }
  td.wide { width: auto; padding: .3rem 0; }
  td:empty { display: none; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .5rem; }
}
@media print { nav { display: none; } h2 { break-after: avoid; } figure, li, tr { break-inside: avoid; } }
"""

CAPTIONS = {
    "loss": "Solid: the loss of training, as logged and smoothed. Dashed: measured on held-out images with the "
    "averaged weights. A held-out loss that rises while the training loss falls would mean memorising. "
    "A joint model's training loss holds its classification loss too, the held-out one is of denoising alone.",
    "time": "Each column starts from the same noise; each row shows what the model made of it after so many training "
    "images.",
    "samples": "Generated, in order of their seeds: none was picked out.",
    "real": "Real images of the same data.",
    "noising": "Above: a training image as training shows it to the model, with ever more noise. Over it the noise "
    "level sigma, under it the signal-to-noise ratio. Training spends equally much on each part between two columns. "
    "Below: what the model makes of it; where nothing is left to see, that is the mean of all images.",
    "trajectory": "From noise to image, left to right. The numbers are the noise level sigma at each step.",
    "classes": "How often each class occurs among generated and among real images, as the classifier sees it.",
    "features": "Accuracy of a classifier on the features of every layer (top to bottom as the network runs) at "
    "every noise level, on validation images. The frame marks the place that was chosen.",
    "labels": "Test accuracy with so many labelled images of each class, the same images for both curves; bands: 95 % "
    "intervals over random choices of them. Layer and noise level are chosen on validation images.",
    "training": "The best classifier on the features, the samples, and the features' geometry, at several moments of "
    "training. The large points mark the best accuracy and the lowest value of the others.",
    "reliability": "How often answers are right, by how sure the model is of them, with 95 % intervals; on the dashed "
    "line confidence is what it says, below it the model is too sure. Bars: how many answers are that sure.",
    "against_noise": "Accuracy on held-out images to which noise was added, which the model is told of; band: 95 % "
    "interval.",
    "strangeness": "How strange held-out images of its own kind and images of another kind are to the model, by "
    "several scores. The less the two overlap, the better it can tell them apart.",
    "neighbours": "Upper image of each pair: generated. Lower: the training image nearest to it, and their distance. "
    "Pairs that are alike in every detail would mean copying.",
}

PAGE = """\
{% macro picture(image) -%}
<img src="{{ image.source }}" width="{{ image.width }}" height="{{ image.height }}" alt="{{ image.alt }}">
{%- endmacro %}
{% macro figure(name, kind="grid") -%}
<figure class="{{ kind }}">{{ picture(images[name]) }}<figcaption>{{ captions[name] }}</figcaption></figure>
{%- endmacro %}
{% macro cell(row, key, title) -%}
<td class="number" data-label="{{ title }}">{% if key in row.cells %}<span>{{ row.cells[key] }}</span>
{%- if key == row.cells | first and row.interval %}<small>{{ row.interval }}</small>{% endif %}{% endif %}</td>
{%- endmacro %}
{% macro facts(pairs) -%}
<dl>{% for name, value in pairs.items() %}<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
{%- endmacro %}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ report.title }}</title>
<style>{{ css }}</style>
</head>
<body>
<header>
<h1>{{ report.title }}</h1>
{% if report.summary %}<p>{{ report.summary }}</p>{% endif %}
<nav aria-label="Sections"><ul>
{% for name, title in sections.items() %}<li><a href="#{{ name }}">{{ title }}</a></li>
{% endfor %}</ul></nav>
</header>
<main>
{% if "verdict" in sections %}
<section aria-labelledby="verdict">
<h2 id="verdict">{{ sections.verdict }}</h2>
{% if overall %}<p class="overall">{{ overall }}</p>{% endif %}
<ul class="criteria">
{% for one in criteria %}<li class="{{ one.state }}">
{% if one.state %}<span class="state">{{ one.mark }}</span>{% endif %}<h3>{{ one.name }}</h3>
<div class="value">{{ one.value }}{% if one.target %}<small>{{ one.target }}</small>{% endif %}</div>
{% if one.meaning %}<p>{{ one.meaning }}</p>{% endif %}
</li>
{% endfor %}</ul>
</section>
{% endif %}
{% if "loss" in sections %}
<section aria-labelledby="loss">
<h2 id="loss">{{ sections.loss }}</h2>
{{ figure("loss", "chart") }}
</section>
{% endif %}
{% if "time" in sections %}
<section aria-labelledby="time">
<h2 id="time">{{ sections.time }}</h2>
{{ figure("time") }}
</section>
{% endif %}
{% if "samples" in sections %}
<section aria-labelledby="samples">
<h2 id="samples">{{ sections.samples }}</h2>
<div class="pair">
{% if images.samples %}{{ figure("samples") }}{% endif %}
{% if images.real %}{{ figure("real") }}{% endif %}
</div>
</section>
{% endif %}
{% if "noising" in sections %}
<section aria-labelledby="noising">
<h2 id="noising">{{ sections.noising }}</h2>
{{ figure("noising") }}
</section>
{% endif %}
{% if "trajectory" in sections %}
<section aria-labelledby="trajectory">
<h2 id="trajectory">{{ sections.trajectory }}</h2>
{{ figure("trajectory") }}
</section>
{% endif %}
{% if "classes" in sections %}
<section aria-labelledby="classes">
<h2 id="classes">{{ sections.classes }}</h2>
{% if images.classes %}{{ figure("classes", "chart") }}{% endif %}
<table class="middle">
<thead><tr><th scope="col">Class</th>{% if strips %}<th scope="col">Generated images</th>{% endif %}
{% for _, title in class_columns %}<th scope="col">{{ title }}</th>{% endfor %}</tr></thead>
<tbody>
{% for name, row in class_rows.items() %}<tr><th scope="row">{{ name }}</th>
{% if strips %}<td class="wide">{% if name in strips %}{{ picture(strips[name]) }}{% endif %}</td>{% endif %}
{% for key, title in class_columns %}<td class="number" data-label="{{ title }}">{{ row.get(key, "") }}</td>
{% endfor %}</tr>
{% endfor %}</tbody>
</table>
</section>
{% endif %}
{% if "neighbours" in sections %}
<section aria-labelledby="neighbours">
<h2 id="neighbours">{{ sections.neighbours }}</h2>
{{ figure("neighbours") }}
</section>
{% endif %}
{% if "recognition" in sections %}
<section aria-labelledby="recognition">
<h2 id="recognition">{{ sections.recognition }}</h2>
<p>{{ recognition.summary }}</p>
<table>
<thead><tr><th scope="col">Read off</th><th scope="col">Test accuracy</th><th scope="col">95 % interval</th>
<th scope="col">Where</th></tr></thead>
<tbody>
{% for row in recognition.rows %}<tr><th scope="row">{{ row.name }}</th>
<td class="number" data-label="Test accuracy">{{ row.accuracy }}</td>
<td class="number" data-label="95 % interval">{{ row.interval }}</td><td class="soft">{{ row.where }}</td></tr>
{% endfor %}</tbody>
</table>
{% for name in ("features", "labels", "training") if images[name] %}{{ figure(name, "chart") }}
{% if name == "labels" %}
<table>
<thead><tr><th scope="col">Labels</th><th scope="col">Diffusion features</th><th scope="col">Raw pixels</th>
<th scope="col">Where</th></tr></thead>
<tbody>
{% for row in recognition.labels %}<tr><th scope="row">{{ row.name }}</th>
<td class="number" data-label="Diffusion features">{{ row.accuracy }}</td>
<td class="number" data-label="Raw pixels">{{ row.raw }}</td><td class="soft">{{ row.where }}</td></tr>
{% endfor %}</tbody>
</table>
{% endif %}
{% endfor %}
{% if recognition.contrastive %}
<table>
<thead><tr><th scope="col">Layer, at sigma {{ recognition.sigma }}</th><th scope="col">Alignment</th>
<th scope="col">Uniformity</th></tr></thead>
<tbody>
{% for row in recognition.contrastive %}<tr><th scope="row">{{ row.name }}</th>
<td class="number" data-label="Alignment">{{ row.alignment }}</td>
<td class="number" data-label="Uniformity">{{ row.uniformity }}</td></tr>
{% endfor %}</tbody>
</table>
<p class="soft">Alignment: squared distance between two noise draws of an image, on the unit sphere; 0 is the same.
Uniformity: the lower, the more evenly images are spread over the sphere.</p>
{% endif %}
{% if recognition.finding %}
<h3>Is it the published finding?</h3>
<ul>
{% for line in recognition.finding %}<li>{{ line.question }} <strong>{{ line.answer }}</strong>:
{{ line.evidence }}</li>
{% endfor %}</ul>
{% endif %}
{% for line in recognition.notes %}<p class="soft">{{ line }}</p>
{% endfor %}
</section>
{% endif %}
{% if "answers" in sections %}
<section aria-labelledby="answers">
<h2 id="answers">{{ sections.answers }}</h2>
{% if answers.summary %}<p>{{ answers.summary }}</p>{% endif %}
{% if answers.rows %}
<table>
<thead><tr><th scope="col">Metric</th><th scope="col">Value</th><th scope="col">What it says</th></tr></thead>
<tbody>
{% for row in answers.rows %}<tr><th scope="row">{{ row.title }}</th>
<td class="number" data-label="Value"><span>{{ row.value }}</span>
{%- if row.interval %}<small>{{ row.interval }}</small>{% endif %}</td>
<td class="soft">{{ row.meaning }}</td></tr>
{% endfor %}</tbody>
</table>
{% endif %}
<div class="pair">
{% for name in ("reliability", "against_noise") if images[name] %}{{ figure(name, "chart") }}
{% endfor %}</div>
{% if answers.classes %}
<table>
<thead><tr><th scope="col">{{ answers.kind }}</th>
{% for title in answers.columns %}<th scope="col">{{ title }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in answers.classes %}<tr><th scope="row">{{ row.name }}</th>
{% for title in answers.columns %}<td class="number" data-label="{{ title }}">{{ row.cells[loop.index0] }}</td>
{% endfor %}</tr>
{% endfor %}</tbody>
</table>
{% if answers.left_out %}<p class="soft">The least known are shown; {{ answers.left_out }} more are known better.</p>
{% endif %}
{% endif %}
{% if answers.scores %}
<h3>Images of another kind</h3>
<table>
<thead><tr><th scope="col">Score</th><th scope="col">AUROC</th><th scope="col">95 % interval</th>
<th scope="col">FPR at 95 %</th><th scope="col">AUPR</th></tr></thead>
<tbody>
{% for row in answers.scores %}<tr><th scope="row">{{ row.title }}</th>
<td class="number" data-label="AUROC">{{ row.auroc }}</td>
<td class="number" data-label="95 % interval">{{ row.interval }}</td>
<td class="number" data-label="FPR at 95 %">{{ row.fpr95 }}</td>
<td class="number" data-label="AUPR">{{ row.aupr }}</td></tr>
{% endfor %}</tbody>
</table>
<p class="soft">{{ answers.scores_note }}</p>
{{ figure("strangeness", "chart") }}
{% endif %}
{% for line in answers.notes %}<p class="soft">{{ line }}</p>
{% endfor %}
</section>
{% endif %}
{% if "metrics" in sections %}
<section aria-labelledby="metrics">
<h2 id="metrics">{{ sections.metrics }}</h2>
<table>
<thead><tr><th scope="col">Metric</th>{% for _, title in metric_columns %}<th scope="col">{{ title }}</th>{% endfor %}
<th scope="col">What it says</th></tr></thead>
<tbody>
{% for row in metric_rows %}<tr><th scope="row">{{ row.title }}</th>
{% for key, title in metric_columns %}{{ cell(row, key, title) }}
{% endfor %}<td class="soft">{{ row.meaning }}</td></tr>
{% endfor %}</tbody>
</table>
{% if metric_note %}<p class="soft">{{ metric_note }}</p>{% endif %}
</section>
{% endif %}
{% if "settings" in sections %}
<section aria-labelledby="settings">
<h2 id="settings">{{ sections.settings }}</h2>
<details><summary>All settings, as saved in settings.yaml</summary><pre>{{ report.settings }}</pre></details>
</section>
{% endif %}
{% if "reproduce" in sections %}
<section aria-labelledby="reproduce">
<h2 id="reproduce">{{ sections.reproduce }}</h2>
<pre>{{ report.command }}</pre>
</section>
{% endif %}
{% if "data" in sections %}
<section aria-labelledby="data">
<h2 id="data">{{ sections.data }}</h2>
{{ facts(report.data) }}
</section>
{% endif %}
{% if "machine" in sections %}
<section aria-labelledby="machine">
<h2 id="machine">{{ sections.machine }}</h2>
{{ facts(machine) }}
</section>
{% endif %}
</main>
<footer>
{% for note in report.notes %}<p>{{ note }}</p>
{% endfor %}<p>This page is one file: it loads nothing and sends nothing.</p>
</footer>
</body>
</html>
"""
