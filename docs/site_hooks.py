"""What the site needs besides the pages in docs/: pages that live elsewhere, and the list of decisions.

README.md of benchmarks and CONTRIBUTING.md become pages; links to them, and from them, are rewritten. The pages in
docs/ stay as they are, so that their links work in the repository, too.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = {"benchmarks/README.md": "benchmarks.md", "CONTRIBUTING.md": "contributing.md"}  # in the repository: here
PAGES = {**ELSEWHERE, "README.md": "index.md"}
LINK = re.compile(r"\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """Spells out the folder of decisions in the navigation."""
    decisions = sorted(path.name for path in (ROOT / "docs/decisions").glob("*.md"))
    for section in config["nav"]:
        for entries in section.values() if isinstance(section, dict) else ():
            for entry in entries:
                if entry == {"Decisions": "decisions"}:
                    entry["Decisions"] = [f"decisions/{name}" for name in decisions]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that live elsewhere."""
    for source, page in ELSEWHERE.items():
        text = LINK.sub(lambda link, source=source: _from(link, ROOT / source), (ROOT / source).read_text())
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(text: str, page: Any, **_: Any) -> str:
    """Links that leave docs/ lead to the pages made of what they name."""
    if page.file.generated_by:
        return text
    return LINK.sub(lambda link: _from(link, Path(page.file.abs_src_path)), text)


def _from(link: re.Match[str], source: Path) -> str:
    """A link of a file, as one of the site's page made of it. Others stay as they are."""
    target, anchor = link[1], link[2] or ""
    if re.match(r"[a-z]+:", target):
        return link[0]
    path = (source.parent / target).resolve()
    if not path.is_relative_to(ROOT):
        return link[0]
    named = str(path.relative_to(ROOT))
    if named in PAGES:
        found = PAGES[named]
    elif source.is_relative_to(ROOT / "docs"):
        return link[0] if path.suffix else f"{link[0][:-1].rstrip('/')}/{_first(path)})"
    elif named.startswith("docs/"):
        found = named.removeprefix("docs/")
    else:  # a file of the code: its name is enough
        return link[0]
    depth = len(source.relative_to(ROOT / "docs").parts) - 1 if source.is_relative_to(ROOT / "docs") else 0
    return f"]({'../' * depth}{found}{anchor})"


def _first(folder: Path) -> str:
    """The first page of a folder that a link names."""
    return sorted(path.name for path in folder.glob("*.md"))[0] if folder.is_dir() else ""
