"""What do a generator and its images add to the best that can be learned from few labels alone?

    python benchmarks/fewlabel.py digits --labels 1 2 --draws 5 6 7 8 9 10 11 12 13 14 --work runs/fewlabel

One experiment (`twofold fewlabel`, preset --preset) for each number of labels per class and each draw of the labelled
images; the features' denoiser, which sees no label, is trained once and shared. Test accuracies, in one row:

    stage 1          the preset's first learner on the features
    self-training    the preset's last learner on the first learner's pseudo labels; "corrected": on those that networks
                     of other images' labels have corrected
    generated alone  the same on pseudo images alone, never a real one
    stage 3          the same on both, after networks of both have corrected the labels once more

Beside them every other learner of one stage on the same features (logistic regression in the published form, mixture,
prototypes, self-training), and scikit-learn's SelfTrainingClassifier and LabelSpreading on raw pixels and on the
features. The rows are JSON files in --work, which are not computed again; several processes may share them. At the end
means with 95 % intervals (Student's t over draws) and the paired differences; a row that is not there is missing. With
`--words stage=1 pseudo.folds=0` only what learns in one stage is compared, in seconds a row.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.semi_supervised import LabelSpreading, SelfTrainingClassifier

from twofold.data import Store, open_store
from twofold.learn.features import Features
from twofold.learn.fewlabel import run
from twofold.learn.fewlabel.subject import Subject, complete
from twofold.recognize.learners import LEARNERS
from twofold.recognize.published import standardised
from twofold.settings.fewlabel import FewLabelSettings
from twofold.settings.fewlabel_layers import layers_of
from twofold.settings.resolve import parse_assignments, resolve

STAGES = ("stage 1", "self-training", "self-training, corrected", "generated alone", "stage 3")


def settings_of(arguments: argparse.Namespace, labels: int, draw: int) -> FewLabelSettings:
    words = [f"data.source={arguments.data}", f"labels_per_class={labels}", f"labels_seed={draw}", *arguments.words]
    layers, _ = layers_of(arguments.preset, parse_assignments(words))
    return resolve(FewLabelSettings, layers)[0]


def row_of(arguments: argparse.Namespace, labels: int, draw: int) -> dict[str, Any]:
    """Of one choice of labelled images: read if it is there, else computed."""
    file = arguments.work / f"{labels}-{draw}.json"
    settings = settings_of(arguments, labels, draw)
    if file.is_file():
        row: dict[str, Any] = json.loads(file.read_text())
        if row["settings"] == settings.model_dump(mode="json"):
            return row
    result, _ = run(settings, arguments.work / f"{labels}-{draw}", "cpu", parts=arguments.work / "parts")
    row = {"labels": labels, "draw": draw, "pseudo": result["pseudo"]["accuracy"]}
    row |= {stage: result["accuracy"][stage]["value"] for stage in STAGES if stage in result["accuracy"]}
    row |= others(settings, arguments.work / f"{labels}-{draw}", result)
    row |= {"made": sum(p["seconds"] for p in result["parts"]), "seconds": result["seconds"], "machine": machine()}
    file.write_text(json.dumps(row | {"settings": settings.model_dump(mode="json")}))
    return row


def others(settings: FewLabelSettings, out: Path, result: dict[str, Any]) -> dict[str, float]:
    """Learners of one stage, ours and scikit-learn's, on the same labelled images."""
    settings = complete(settings)
    store = open_store(settings.data)
    subject = Subject(store)
    folder = next(out / part["folder"] for part in result["parts"] if part["name"] == "features")
    n, y, truth = len(subject.train), subject.labels, subject.truth
    x = Features(folder, n + len(subject.test)).all()
    found = {}
    for name, kind in LEARNERS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            learned = kind()(x[:n], torch.from_numpy(y), len(subject.classes))
        found[name] = right(learned.logits(x[n:]).argmax(1).numpy(), truth)
    for where, values in {"features": standardised(x).numpy(), "pixels": pixels(store, subject)}.items():
        spread = LabelSpreading(kernel="knn", n_neighbors=8, alpha=0.8, max_iter=1000)
        training = SelfTrainingClassifier(LogisticRegression(C=400 if where == "features" else 1.0, max_iter=2000))
        for name, model in {"LabelSpreading": spread, "SelfTrainingClassifier": training}.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model.fit(values[:n], y)
            found[f"{name}, {where}"] = right(model.predict(values[n:]), truth)
    return found


def pixels(store: Store, subject: Subject) -> np.ndarray:
    """Raw pixels in 0..1, training images first."""
    rows = np.concatenate([subject.train, subject.test])
    flat: np.ndarray = store.batch(rows).flatten(1).float().div(255).numpy()
    return flat


def right(answers: np.ndarray, truth: np.ndarray) -> float:
    return float((answers == truth).mean())


def interval(values: list[float]) -> dict[str, Any]:
    """Mean and 95 % interval over draws."""
    mean = float(np.mean(values))
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)) if len(values) > 1 else float("nan")
    return {"mean": round(mean, 4), "low": round(mean - half, 4), "high": round(mean + half, 4), "n": len(values)}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means of everything, and what stage 3 is above each of the others, pair by pair."""
    names = [n for n, value in rows[0].items() if isinstance(value, float) and n not in ("made", "seconds")]
    means = {name: interval([row[name] for row in rows]) for name in names}
    if "stage 3" not in rows[0]:
        return {"mean": means}
    gains = {n: interval([row["stage 3"] - row[n] for row in rows]) for n in names if n not in ("stage 3", "pseudo")}
    return {"mean": means, "stage 3 is above": gains}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="digits, or another source")
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--labels", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--draws", type=int, nargs="+", default=list(range(5, 15)))
    parser.add_argument("--work", type=Path, default=Path("runs/fewlabel"))
    parser.add_argument("--words", nargs="*", default=[], help="further settings, key=value")
    parser.add_argument("--only-there", action="store_true", help="sum up the rows that are there; compute none")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    for labels in arguments.labels:
        rows = []
        for draw in arguments.draws:
            if arguments.only_there and not (arguments.work / f"{labels}-{draw}.json").is_file():
                print(json.dumps({"labels": labels, "draw": draw, "missing": True}), flush=True)
                continue
            rows.append(row_of(arguments, labels, draw))
            print(json.dumps({k: v for k, v in rows[-1].items() if k not in ("settings", "machine")}), flush=True)
        if rows:
            print(json.dumps({"labels": labels, **summary(rows)}, indent=1), flush=True)


if __name__ == "__main__":
    main()
