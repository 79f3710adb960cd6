"""What is a student worth that a diffusion model taught, against the same student without a teacher?

    python benchmarks/distillation.py fashion --teacher runs/fashion --data FOLDER --work runs/teach-fashion
    python benchmarks/distillation.py camvid --teacher runs/camvid --data camvid:FOLDER --work runs/teach-camvid
    python benchmarks/distillation.py faces --teacher runs/faces --data faces68:FOLDER --work runs/teach-faces

Experiments of `twofold distill` with the presets classify-fashion-mini, segment-mini and landmarks-mini. A seed chooses
the labelled images, the weights and the order of both students. For fashion, students are also taught at other
selections of noise levels (`--selections`), each compared with the others seed by seed:

    uniform        evenly among 4 levels
    fixed-SIGMA    one level, of several; "best fixed" is the one that is best on the validation part, on average
    policy         REINFORCE with the task's reward, from the labels that are known
    expectation    the same policy with its exact gradient

One row for each (labels, selection, seed), a JSON file in --work that is not computed again; what is not there is
missing. At the end means with 95 % intervals (Student's t over seeds) and paired differences.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from common import machine
from scipy import stats

from twofold.learn.teaching import run
from twofold.settings.resolve import parse_assignments, resolve
from twofold.settings.teaching import TeachingSettings
from twofold.settings.teaching_layers import layers_of

PRESETS = {"fashion": "classify-fashion-mini", "camvid": "segment-mini", "faces": "landmarks-mini"}
LEARNED = "low: 0.02, high: 0.5, bins: 4, entropy: 0.02, lr: 0.003"
SELECTIONS = {
    "uniform": "",
    "fixed-0.02": "{kind: fixed, sigma: 0.02}",
    "fixed-0.17": "{kind: fixed, sigma: 0.17}",
    "policy": f"{{kind: policy, {LEARNED}}}",
    "expectation": f"{{kind: expectation, {LEARNED}}}",
}
SCRATCH = "scratch"


def settings_of(arguments: argparse.Namespace, labels: int | None, selection: str, seed: int) -> TeachingSettings:
    words = [f"data.source={arguments.data}", f"labels_seed={seed}", f"seed={seed}", *arguments.words]
    words += [f"labels_per_class={labels}"] if labels else ["annotated=0.1"]
    words += [f"pretrain.objective.sigma={SELECTIONS[selection]}"] if SELECTIONS.get(selection) else []
    words += ["stage=scratch" if selection == SCRATCH else "stage=finetune"]
    teacher = [] if selection == SCRATCH else [str(arguments.teacher)]
    layers, _ = layers_of([*teacher, PRESETS[arguments.set]], parse_assignments(words))
    return resolve(TeachingSettings, layers)[0]


def row_of(arguments: argparse.Namespace, labels: int | None, selection: str, seed: int) -> dict[str, Any] | None:
    """Of one student: read if it is there, else computed; None with --read where it is not there."""
    name = f"{labels or 'some'}-{selection}-{seed}"
    file, settings = arguments.work / f"{name}.json", settings_of(arguments, labels, selection, seed)
    if file.is_file():
        row: dict[str, Any] = json.loads(file.read_text())
        if row["settings"] == settings.model_dump(mode="json"):
            return row
    if arguments.read:
        return None
    result, _ = run(settings, arguments.work / name, "cpu", parts=arguments.work / "parts")
    ((_, arm),) = result["arms"].items()
    row = {"labels": labels, "selection": selection, "seed": seed, "measure": result["measure"]}
    row |= {measure: found["value"] for measure, found in arm["metrics"].items()}
    best = min if result["measure"] == "nme" else max
    row |= {"validation": best(v for v in arm["tried"].values() if v is not None), "tried": arm["tried"]}
    row |= {"lr": arm["lr"], "freeze": arm["freeze"], "seconds": arm["seconds"]}
    pretraining = result["pretraining"] or {}
    row |= {"pretraining": pretraining.get("seconds"), "levels": pretraining.get("selection")}
    row |= {"known": result["data"]["known_images"], "machine": machine()}
    file.write_text(json.dumps(row | {"settings": settings.model_dump(mode="json")}))
    return row


def interval(values: list[float]) -> str:
    """Mean and 95 % interval over seeds."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.4f} (one seed)"
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return f"{mean:.4f} ({mean - half:.4f} to {mean + half:.4f}, n={len(values)})"


def compare(rows: dict[str, dict[int, dict[str, Any]]], first: str, second: str) -> None:
    """Prints what the first is above the second, seed by seed."""
    seeds = sorted(rows.get(first, {}).keys() & rows.get(second, {}).keys())
    if seeds:
        measure = rows[first][seeds[0]]["measure"]
        differences = [rows[first][seed][measure] - rows[second][seed][measure] for seed in seeds]
        print(f"  {first} - {second}: {interval(differences)}")


def report(labels: int | None, rows: dict[str, dict[int, dict[str, Any]]], seeds: list[int]) -> None:
    """Prints means of every kind of student, and paired differences."""
    print(f"labels per class {labels}" if labels else "labels as the preset says")
    for selection, found in rows.items():
        missing = [seed for seed in seeds if seed not in found]
        values = [row[row["measure"]] for row in found.values()]
        print(
            f"  {selection:<12} {interval(values) if values else 'missing'}{f'; missing {missing}' if missing else ''}"
        )
    for selection in rows:
        if selection != SCRATCH:
            compare(rows, selection, SCRATCH)
    fixed = {name: found for name, found in rows.items() if name.startswith("fixed") and len(found) == len(seeds)}
    if fixed:
        best = max(fixed, key=lambda name: np.mean([row["validation"] for row in fixed[name].values()]))
        print(f"  best fixed level by validation: {best}")
        for learned in ("policy", "expectation"):
            compare(rows, learned, best)
            compare(rows, learned, "uniform")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=PRESETS)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--labels", type=int, nargs="*", default=None, help="labels per class, of fashion")
    parser.add_argument("--selections", nargs="+", default=["uniform"], choices=SELECTIONS)
    parser.add_argument("--read", action="store_true", help="compute nothing, print the rows there are")
    parser.add_argument("--words", nargs="*", default=[], help="settings, key=value")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    every = (arguments.labels or [10, 50]) if arguments.set == "fashion" else [None]
    rows: dict[Any, dict[str, dict[int, dict[str, Any]]]] = {
        labels: {name: {} for name in [SCRATCH, *arguments.selections]} for labels in every
    }
    for seed in arguments.seeds:
        for selection in [SCRATCH, *arguments.selections]:
            for labels in every:
                row = row_of(arguments, labels, selection, seed)
                if row is not None:
                    rows[labels][selection][seed] = row
                    print(labels, selection, seed, round(row[row["measure"]], 4), f"{row['seconds']:.0f} s", flush=True)
    for labels in every:
        report(labels, rows[labels], arguments.seeds)


if __name__ == "__main__":
    main()
