"""Writes presets.md, "choose a preset", from the presets' own headers: `python docs/make_presets.py`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from twofold.settings.presets import DISTILL, FEWLABEL, TRAINING, header_fields, open_preset, preset_names

PAGE = Path(__file__).with_name("presets.md")
TOP = """\
# Choose a preset

A preset is a YAML file of a few lines; `twofold train NAME data=SOURCE key=value ...` takes it and overrides what you
want otherwise. `--dry-run` says before anything begins how many parameters, how much memory and about how long.

## By need

| you want | you have | take |
| --- | --- | --- |
| to see whether it works | a laptop, five minutes | `digits`, or all of it: `make demo` |
| new images like yours | a folder, up to 64 pixels | `images-32`, `images-64` |
| the same, larger images | a GPU and an autoencoder | a preset of latents, below |
| to name images as well as to make them | labels | `joint-digits-mini` to try, `images-32 objective.kind=joint` |
| a classifier from a few labels | many images | `twofold fewlabel`; alone `freematch-cifar10` |
| a small network for a camera | a denoiser | `twofold distill RUN classify`, `segment`, `landmarks` |
| small images made larger | large images | `sr-x2`, `sr-x4`, `sr-x4-rdn` (one pass); a try: `sr-digits-mini` |
| pictures of defects, class by class | a folder of class folders | `iddm-64`, or `images-64` |
| to go on from a trained model | a run | `lora` (low-rank updates), `finetune` (a classifier out of it) |
| numbers of a paper | its data and a GPU | the published recipes, by name |
| to read features | a denoiser | any of `ddae-*`, then `twofold probe RUN` |

`-mini` means: 2 CPU cores and minutes, and mostly 1,797 digits of 8x8 that come with scikit-learn. The others name
their machine. Where `expected` says that nothing was measured, nothing was.

Every line below is the preset's own header; `python docs/make_presets.py` writes this page.
"""
FAMILIES = {
    TRAINING: "`twofold train NAME`",
    FEWLABEL: "`twofold fewlabel NAME`",
    DISTILL: "`twofold distill RUN NAME`",
}
GROUPS = [  # of the presets of training, by name; the first that matches counts
    ("Your own images, and models to go on from", r"images-|lora$|finetune$|digits$|digits-classifier$"),
    ("DDAE and other denoisers of pixels", r"ddae-|ddpm-|edm-|adm-|iddm"),
    ("Larger images from small ones", r"sr-"),
    ("Joint models", r"joint-"),
    ("Latents and transformers", r"autoencoder|latent|dit-|uvit-|dpt-"),
    ("Few labels", r"freematch|fewlabel"),
    ("Classifiers that know noise", r"noisy-"),
    ("Others", r""),
]


def page() -> str:
    """The whole page."""
    parts = [TOP]
    groups: dict[str, list[str]] = {title: [] for title, _ in GROUPS}
    for name in preset_names():
        groups[next(title for title, pattern in GROUPS if re.match(pattern, name))].append(name)
    for title, names in groups.items():
        if names:
            parts += [f"\n## {title}\n\n{FAMILIES[TRAINING]}\n", table(names, TRAINING)]
    for family, title in ((FEWLABEL, "All of dual pseudo training"), (DISTILL, "All of distillation")):
        parts += [f"\n## {title}\n\n{FAMILIES[family]}\n", table(preset_names(family), family)]
    return "\n".join(parts).rstrip() + "\n"


def table(names: list[str], family: str) -> str:
    """One row a preset: what for, data, machine and time, what to expect."""
    rows = ["| preset | purpose | data | machine | expected |", "| --- | --- | --- | --- | --- |"]
    for name in names:
        fields = header_fields(open_preset(name, family).header)
        minutes = f"{fields['minutes']} minutes" if re.fullmatch(r"[\d ,to]+", fields.get("minutes", "")) else ""
        machine = "; ".join(part for part in (fields.get("machine", ""), minutes or fields.get("minutes", "")) if part)
        cells = (fields.get("purpose", ""), fields.get("data", ""), machine, fields.get("expected", ""))
        rows.append(f"| `{name}` | " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    if "--help" in sys.argv:
        print(__doc__)
    else:
        PAGE.write_text(page())
