"""The order of the rooms: few entries at the root, no circle of imports, and lazy names as type checkers see them."""

import ast
import importlib
import shutil
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest
from helpers.paths import ROOT

PACKAGE = ROOT / "sslkit"
LINT = "from importlinter.cli import lint_imports; import sys; sys.exit(lint_imports(no_cache=True))"
LAZY = [file for file in sorted(PACKAGE.rglob("__init__.py")) if "lazy_names(" in file.read_text()]


def test_the_root_has_at_most_seventeen_entries():
    entries = {path.name for path in PACKAGE.iterdir()} - {"py.typed", "__pycache__"}
    assert len(entries) <= 17, sorted(entries)


def test_no_module_imports_itself_through_others():
    graph = grimp.build_graph("sslkit", cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert sum(map(len, imports.values())) > 300
    # Raises CycleError, which names the modules of a circle.
    TopologicalSorter(imports).prepare()


@pytest.fixture
def house(tmp_path):
    """A copy of the package and of its contract, to break."""
    shutil.copytree(PACKAGE, tmp_path / "sslkit", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def broken_contracts(folder: Path) -> list[str]:
    done = subprocess.run([sys.executable, "-c", LINT], cwd=folder, capture_output=True, text=True)
    assert "Contracts: " in done.stdout, done.stdout + done.stderr
    broken = [line.removesuffix(" BROKEN") for line in done.stdout.splitlines() if line.endswith(" BROKEN")]
    assert bool(broken) == bool(done.returncode)
    return broken


def test_the_contract_holds_for_the_package_as_it_is(house):
    assert broken_contracts(house) == []


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("data/split.py", "from sslkit.methods.base import Method"),
        ("nn/heads.py", "def later():\n    from sslkit.data.split import stratified_split"),
        ("runs/records.py", "if TYPE_CHECKING:\n    from sslkit.training.setup import TrainingSetup"),
        ("machine/atomic.py", "import sslkit.nn.heads"),
        ("augment/ops.py", "import sslkit.data.split"),
    ],
)
def test_an_import_that_goes_up_or_sideways_breaks_it(house, room, line):
    file = house / "sslkit" / room
    file.write_text(f"{file.read_text()}\n\nfrom typing import TYPE_CHECKING\n{line}\n")
    assert "Imports only go down" in broken_contracts(house)


def test_a_room_that_no_layer_names_breaks_it(house):
    (house / "sslkit/attic").mkdir()
    (house / "sslkit/attic/__init__.py").write_text('"""A room that nobody planned."""\n')
    assert "Imports only go down" in broken_contracts(house)


def package_of(file: Path) -> str:
    return ".".join(file.parent.relative_to(ROOT).parts)


@pytest.mark.parametrize("file", LAZY, ids=package_of)
def test_lazy_names_are_those_that_type_checkers_see(file):
    tree = ast.parse(file.read_text())
    seen = {
        alias.asname or alias.name: f"{node.module}:{alias.name}"
        for block in tree.body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    [call] = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "lazy_names"]
    lazy = {name: home if ":" in home else f"{home}:{name}" for name, home in ast.literal_eval(call.args[1]).items()}
    assert lazy == seen
    package = importlib.import_module(package_of(file))
    assert set(lazy) <= set(package.__all__)
    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        assert getattr(package, name) is not None


def test_most_rooms_have_lazy_names():
    assert len(LAZY) >= 8, "or the test above looks for the wrong word"
