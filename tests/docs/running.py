"""Runs one command of the documentation in the current folder, shortened, in this process where that is possible."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import io
import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twofold.cli.main import VERBS, build_parser, main, split_assignments
from twofold.cli.train import resolved
from twofold.settings.resolve import from_yaml, parse_assignments, resolve
from twofold.settings.train import TrainSettings

from ..test_presets import narrowed
from .reading import ROOT, Command
from .stand_ins import stand_in

# Settings that make a verb quick, in place of those in the documentation; for `train` and dry runs see `shortened`
SHORTER: dict[str, list[str]] = {
    "sample": ["n=2", "steps=3", "precision=fp32"],
    "evaluate": ["n=8", "steps=2", "precision=fp32", "encoder=pixels8"],
    "probe": [
        "max_train=40",
        "max_test=20",
        "sigmas=[0.1]",
        "draws=2",
        "copies=1",
        "concat=[]",
        "head.epochs=1",
        "labels_per_class=[1]",
        "label_draws=2",
    ],
    "predict": [],
    "edit": ["n=1", "steps=2", "strength=0.5", "figures=1"],
    "inpaint": ["steps=2", "n=1", "repaints=1"],
    "vary": ["steps=2", "n=1"],
    "upscale": ["steps=2", "n=2"],
    "export": ["runs=3"],
    "data": [],
    "runs": [],
    "doctor": [],
}
LIKELIHOOD = ["likelihood_steps=2", "likelihood_images=2", "likelihood_evaluations=2"]
MAKES_IMAGES = ("denoising", "joint")  # objectives of what is sampled when it is evaluated
ONLY_DRY = ("fewlabel", "distill")  # each stage of them is tested elsewhere, and none is short
SMALL = re.compile(r".*-mini|digits|digits-classifier|images-\d+|finetune|lora|noisy-mlp|runs/.*|.*\.yaml")


# Commands that went well, of any page: in another one they would do the same. Probes, and what is written to a place of
# its own, are made again, because later commands of a page may need them
DONE: set[tuple[str, ...]] = set()


class Failed(AssertionError):
    """A command that does not do what its page says."""


def run(command: Command) -> None:
    """Runs it. Raises `Failed` with what it said where it fails, and where it is of no known kind."""
    words = stand_in(command.page, command.words)
    first = Path(words[0]).name
    if first not in RUNNERS:
        raise Failed(f"{command}\n  neither run nor in NOT_RUN (not_run.py): {words[0]}")
    if tuple(words) in DONE:
        return
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = RUNNERS[first](words)
    if code != 0:
        raise Failed(f"{command}\n  as {' '.join(words)}\n  exit code {code}: {said.getvalue()[-1500:].strip()}")
    if words[:2] != ["twofold", "probe"] and "--out" not in words:
        DONE.add(tuple(words))


def run_twofold(words: list[str]) -> int:
    """`twofold ...`, in this process."""
    argv = shortened(list(words[1:]))
    if argv[:1] == ["serve"]:
        return _parsed(argv)
    out = argv[argv.index("--out") + 1] if "--out" in argv else None
    if out is not None and Path(out).is_absolute():
        raise Failed(f"{' '.join(words)}\n  --out leaves the page's folder: add what stands in for it to WORDS")
    if out is not None and "--dry-run" not in argv:  # what the page makes takes the place of what stands in for it
        if Path(out).is_symlink() or not Path(out).is_dir():
            Path(out).unlink(missing_ok=True)
        else:
            shutil.rmtree(out)
    return main(argv)


def _parsed(argv: list[str]) -> int:
    """A command that would run until it is stopped: its words are read, and its settings resolved."""
    verb = importlib.import_module(f"twofold.cli.{VERBS[argv[0]][0]}")
    parser = build_parser(argv[0], verb)
    settings, others = split_assignments(argv[1:], parser)
    parser.parse_args(others)
    resolve(verb.settings_model(), [("command line", parse_assignments(settings))])
    return 0


def shortened(argv: list[str]) -> list[str]:
    """The same words with settings that make it quick."""
    if not argv or "--dry-run" in argv or "--help" in argv or argv[0].startswith("-"):
        return argv
    verb = argv[0]
    if verb in ONLY_DRY:
        return [*argv, "--dry-run"]
    if verb == "train":
        return _training(argv)
    changes = list(SHORTER[verb]) if verb in SHORTER else []
    if verb == "export" and not any(word in ("to=all", "to=onnx") for word in argv) and "to=" in " ".join(argv):
        changes = []
    if verb == "evaluate" and not _makes_images(argv):
        changes = []
    if any(word.startswith("ood=") for word in argv):
        changes += ["ood_images=20"]
    if verb == "sample" and any(re.match(r"grid=(ddim|\d)", word) for word in argv):
        changes.remove("steps=3")
    if verb == "probe" and not any(word.startswith("head.kind=recipe") for word in argv):
        changes.remove("head.epochs=1")
    if verb == "probe" and not any(word.startswith("labels_per_class=") for word in argv):
        changes = [change for change in changes if not change.startswith("label")]
    if any(word.startswith("likelihood") for word in argv):
        changes += LIKELIHOOD
    return replaced(argv, changes)


def _makes_images(argv: list[str]) -> bool:
    settings = Path(argv[1]) / "settings.yaml"
    return settings.is_file() and from_yaml(TrainSettings, settings).objective.kind in MAKES_IMAGES


def replaced(argv: list[str], changes: list[str]) -> list[str]:
    """The words with these settings instead of others of the same name."""
    names = {change.partition("=")[0] for change in changes}
    return [word for word in argv if word.partition("=")[0] not in names] + changes


def _training(argv: list[str]) -> list[str]:
    """Two steps at the smallest width where a preset is small, otherwise what the run would need."""
    preset, words = argv[1], [word for word in argv[2:] if re.match(r"[a-z_.]+=", word)]
    if not SMALL.fullmatch(preset):
        return [*argv, "--dry-run"]
    settings, _ = resolved(preset, words)
    begins = any(word.startswith(("init_from=", "resume_from=")) for word in argv)
    changes = _flat(_narrow(settings, begins))
    longer = any(word.startswith("resume_from=") for word in argv)
    changes |= {"train.n_images": 32 if longer else 16, "train.batch_size": 8, "train.precision": "fp32",
                "train.warmup_images": 0, "train.preview_images": 10**6, "train.preview_n": 4,
                "validation.samples": 0, "validation.max_images": 8}  # fmt: skip
    if any(word.startswith("train.snapshot_images=") for word in argv):
        changes["train.snapshot_images"] = [8, 16]
    if longer and not preset.startswith("runs/"):
        changes |= {"network.channels": 8, "network.blocks": 1}  # as the run that it goes on from
    return replaced([*argv, "--quiet"], [f"{key}={_yaml(value)}" for key, value in changes.items()])


def _narrow(settings: TrainSettings, begins: bool) -> dict[str, Any]:
    """Changes that make the network small; none where it comes from another run, or is small by what the page says."""
    if begins:
        return {}
    if settings.network.kind == "student":
        own = settings.network.backbone.kind == "resnet" and {"blocks": [1, 1, 1, 1], "channels": 8}
        return {"network": {"backbone": own}} if own else {}
    changes = narrowed(settings, (1, 8, 8))
    return {name: changes[name] for name in ("network", "codec", "objective") if name in changes}


def _flat(changes: dict[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in changes.items():
        path = f"{above}{name}"
        found |= _flat(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return found


def _yaml(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value, separators=(",", ":"))


def run_torchrun(words: list[str]) -> int:
    """`torchrun ... -m twofold ...`: torchrun's own words are parsed, what it starts runs as one process."""
    from torch.distributed.run import get_args_parser

    arguments = get_args_parser().parse_args(words[1:])
    if not arguments.module or arguments.training_script != "twofold":
        print("torchrun is to start `-m twofold`")
        return 2
    return run_twofold(["twofold", *arguments.training_script_args])


def run_python(words: list[str]) -> int:
    """`python -m twofold ...` as above; of a script in benchmarks its --help, which has to know the options used."""
    if words[1:3] == ["-m", "twofold"]:
        return run_twofold(["twofold", *words[3:]])
    if words[1] == "-c":
        exec(compile(words[2], "python -c", "exec"), {"__name__": "__main__"})
        return 0
    script = ROOT / words[1]
    if not script.is_file():
        print(f"no such script: {words[1]}")
        return 2
    helped = _helped(script)
    own = words[2 : words.index("--")] if "--" in words else words[2:]
    unknown = [word for word in own if word.startswith("--") and not re.search(rf"{word.partition('=')[0]}\b", helped)]
    if unknown:
        print(f"{words[1]} has no {', '.join(unknown)}: {helped}")
    return 2 if unknown else 0


def _helped(script: Path) -> str:
    """What a script says to --help, in this process: starting one takes seconds."""
    said, before, path = io.StringIO(), sys.argv, list(sys.path)
    sys.argv, sys.path = [str(script), "--help"], [str(script.parent), *sys.path]
    try:
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv, sys.path = before, path
    return said.getvalue()


def run_make(words: list[str]) -> int:
    """`make TARGET`: what it would do."""
    return _process(["make", "-n", *words[1:]], ROOT)


def run_curl(words: list[str]) -> int:
    """`curl ...`, of a server of the stand-ins that is started for the first one."""
    place = server()
    words = [re.sub(r"https?://(localhost|127\.0\.0\.1|SERVER)(:\d+)?", place, word) for word in words]
    return _process(["curl", "--silent", "--show-error", "--fail-with-body", "--max-time", "60", *words[1:]])


@functools.cache
def server() -> str:
    """The address of a server of a joint model, a denoiser and a classifier, which ends with this process."""
    command = [sys.executable, "-m", "twofold", "serve", "runs/joint", "runs/digits", "runs/judge"]
    process = subprocess.Popen(
        [*command, "--port", "0", "--device", "cpu", "--quiet"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    atexit.register(process.kill)
    assert process.stdout is not None
    for line in process.stdout:
        found = re.search(r"http://\S+", line)
        if found:
            return found[0].rstrip("/")
    raise Failed(f"the server does not start: {process.stderr.read() if process.stderr else ''}")


def _process(words: list[str], folder: Path | None = None) -> int:
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=120)
    print(done.stdout[-1000:], done.stderr[-1000:])
    return done.returncode


RUNNERS: dict[str, Callable[[list[str]], int]] = {
    "twofold": run_twofold,
    "torchrun": run_torchrun,
    "python": run_python,
    "make": run_make,
    "curl": run_curl,
}
