"""The tree as it is drawn in the documentation: imports go down only, nothing heavy loads before it is needed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "twofold"

# From low to high. What stands in one line may not import each other, except for plain files, and without a circle.
LEVELS = (
    {"errors", "__init__"},
    {"settings", "files", "machine"},
    {"noise", "reverse", "draws", "codec", "lowres", "taps", "hashing", "weightsfile"},
    {"denoiser", "oracle"},
    {"networks", "data"},
    {"generate", "measure"},
    {"recognize", "adapters"},
    {"run"},
    {"learn"},
    {"report"},
    {"serve"},
    {"cli"},
    {"__main__"},
)
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
HEAVY = ("torch", "numpy", "rich", "matplotlib", "datasets", "diffusers", "accelerate", "sklearn", "scipy", "pandas")

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imports(module: str, path: Path) -> Iterator[tuple[str, int]]:
    """(module of this package, line) of every import in a file, inside functions too."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    if module == "__init__":
        package = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == "twofold"]
            yield from ((known(name.removeprefix("twofold").lstrip(".")), node.lineno) for name in names)
        elif isinstance(node, ast.ImportFrom):
            parts = (node.module or "").split(".") if node.module else []
            if node.level:
                base = [*package[: len(package) - node.level + 1], *parts]
            elif parts[:1] == ["twofold"]:
                base = parts[1:]
            else:
                continue
            for alias in node.names:
                yield known(".".join([*base, alias.name])), node.lineno


def known(name: str) -> str:
    """The module that a dotted name is in: the name itself, or without what is only a name inside it."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or "__init__"


def violations(graph: dict[str, list[tuple[str, int]]]) -> list[str]:
    """Imports that go up, or sideways into another folder."""
    found = []
    for module, edges in graph.items():
        for target, line in edges:
            own, other = module.split(".")[0], target.split(".")[0]
            files = (
                own in MODULES and other in MODULES and "__init__.py" not in (MODULES[own].name, MODULES[other].name)
            )
            sideways = LEVEL[own] == LEVEL[other] and own != other and not files
            if LEVEL[other] > LEVEL[own] or sideways:
                found.append(f"{module}:{line} imports {target}")
    return found


def graph() -> dict[str, list[tuple[str, int]]]:
    found = {module: list(imports(module, path)) for module, path in MODULES.items()}
    found["__init__"] = []  # the lazy table: nothing of it runs on import, see below
    return found


def test_every_module_has_a_level() -> None:
    homeless = {module.split(".")[0] for module in MODULES} - set(LEVEL)
    assert not homeless, f"give {homeless} a place in LEVELS"


def test_imports_go_down_only() -> None:
    assert violations(graph()) == []


def test_no_circles() -> None:
    edges = {module: {target for target, _ in found if target != module} for module, found in graph().items()}
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as circle:
        pytest.fail(" <- ".join(circle.args[1]))


@pytest.mark.parametrize(
    ("module", "target"), [("noise", "denoiser"), ("generate.samplers", "measure.frechet"), ("settings.data", "run")]
)
def test_the_check_finds_violations(module: str, target: str) -> None:
    assert violations({module: [(target, 1)]}) == [f"{module}:1 imports {target}"]


def test_the_check_reads_imports(tmp_path: Path) -> None:
    file = tmp_path / "samplers.py"
    file.write_text("from ..noise import family\ndef f():\n    from . import guidance\n    import twofold.run.load\n")
    assert [name for name, _ in imports("generate.samplers", file)][::2] == ["noise", "run.load"]


def declared() -> set[str]:
    """Names of the packages that pyproject.toml requires, as package indices compare them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(p for extra in project["optional-dependencies"].values() for p in extra)]
    return {re.split(r"[<>=!~\[; ]", name)[0].lower().replace("_", "-") for name in wanted}


def test_what_is_imported_is_declared() -> None:
    distributions = packages_distributions()
    undeclared = set()
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            for name in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"twofold"}:
                homes = {home.lower().replace("_", "-") for home in distributions.get(name, [name])}
                if not homes & declared():
                    undeclared.add(f"{path.name}: {name}")
    assert not undeclared


def test_the_doctor_asks_for_what_is_declared() -> None:
    from twofold.cli.doctor import NEEDED

    core = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert set(NEEDED) == {re.split("[<>=]", name)[0] for name in core}


def test_what_is_required_is_imported() -> None:
    from twofold.cli.doctor import NEEDED

    text = "\n".join(path.read_text() for path in MODULES.values())
    unused = [name for name in NEEDED.values() if not re.search(rf"^\s*(import|from) {name}\b", text, re.MULTILINE)]
    assert unused == []


def loaded_by(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after this code."""
    script = f"import sys\nsys.path.insert(0, {str(ROOT / 'src')!r})\n{code}\nprint('\\n' + ' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    return {name.split(".")[0] for name in done.stdout.splitlines()[-1].split()}


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = loaded_by("import twofold; assert 'Denoiser' in dir(twofold)")
    assert not loaded & {*HEAVY, "pydantic"}


def test_help_loads_nothing_heavy() -> None:
    from twofold.cli.main import VERBS

    calls = "\n".join(f"assert main([{verb!r}, '--help']) == 0" for verb in VERBS)
    loaded = loaded_by(f"from twofold.cli.main import main\nassert main([]) == 0\n{calls}")
    assert "pydantic" in loaded
    assert not loaded & set(HEAVY)


def test_every_name_of_the_package_is_there() -> None:
    import twofold

    for name in twofold.__all__:
        assert getattr(twofold, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Denoisr'; it has"):
        twofold.Denoisr  # noqa: B018
