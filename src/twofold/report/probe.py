"""The page of a probe: what `twofold probe` found, and how to find it again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..settings.text import dump_yaml
from .page import Report, write_report


def write_probe_page(folder: Path, found: Mapping[str, Any]) -> Path:
    """Writes report.html and its figures into the folder of a probe; `found` as its result.json holds it."""
    source, data = found["source"], found["data"]
    content = Report(
        title=f"{data['name']}: what {source['path']} knows",
        recognition=found,
        settings=dump_yaml(found["settings"]),
        command=found["command"],
        data={"name": data["name"], "source": data["source"], "hash": data["hash"], **found["images"]},
        machine={"seconds": found["seconds"]},
        versions=found["versions"],
    )
    return write_report(folder, content)
