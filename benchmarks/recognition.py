"""How much do features know? `twofold probe` over several training runs, with intervals over runs and label draws.

    python benchmarks/recognition.py runs/edm-mini-0 runs/edm-mini-1 runs/edm-mini-2 -- pool=grid2 labels_per_class=[2]

RUN ...: the same preset with other training seeds. After `--`: settings of `twofold probe`. Printed for each run, and
as the mean with Student's 95 % interval over runs; few-label rows pool the label draws of all runs by their run's mean.
"""

from __future__ import annotations

import sys
from typing import Any

from common import report

from twofold.cli.probe import probe
from twofold.learn.probed import mean_interval
from twofold.settings.probe import ProbeSettings
from twofold.settings.resolve import parse_assignments, resolve


def rows_of(found: dict[str, Any]) -> dict[str, float]:
    """{what: accuracy} of one probe."""
    rows = {name: row["accuracy"] for name, row in found["results"].items()}
    rows |= {f"{name}, draws averaged": r["averaged"] for name, r in found["results"].items() if "averaged" in r}
    for row in found["labels_per_class"]:
        name = "all labels" if row.get("all") else f"{row['k']} labels per class"
        rows[name], rows[f"{name}, raw pixels"] = row["accuracy"], row["raw"]
    return rows


def main() -> None:
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    runs, assignments = words[:cut], words[cut + 1 :]
    if not runs:
        raise SystemExit(__doc__)
    settings, _ = resolve(ProbeSettings, [("command line", parse_assignments(assignments))])
    tables, verdicts = [], []
    for run in runs:
        found, _ = probe(run, settings, None, quiet=True, command="benchmark")
        assert found is not None
        tables.append(rows_of(found))
        verdicts.append([(answer["question"], answer["holds"], answer["evidence"]) for answer in found["finding"]])
        places = {name: row["places"] for name, row in found["results"].items() if row.get("places")}
        report("recognition", run=run, accuracy={k: round(v, 4) for k, v in tables[-1].items()}, places=places)
    for name in tables[0]:
        values = [table[name] for table in tables]
        interval = mean_interval(values) if len(values) > 1 else (values[0], values[0])
        print(
            f"{name:40} {100 * sum(values) / len(values):5.1f} %   {100 * interval[0]:.1f} to {100 * interval[1]:.1f}"
        )
    for answers in zip(*verdicts, strict=True):
        holds = [holds for _, holds, _ in answers]
        counts = f"yes in {holds.count(True)}, no in {holds.count(False)} of {len(holds)} runs"
        print(f"{answers[0][0]} {counts} ({'; '.join(e for _, _, e in answers)})")


if __name__ == "__main__":
    main()
