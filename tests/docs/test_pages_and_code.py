"""Docs describe the code as it is: its rooms, its layers, every path that a page names, and how to add to it."""

import re
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from sslkit import plugins

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file())
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"), *ROOT.glob("plugins/*/README.md")]


def layers_of_the_contract():
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    [contract] = [c for c in tool["importlinter"]["contracts"] if c["type"] == "layers"]
    return [frozenset(re.findall(r"\w+", layer)) for layer in contract["layers"]]


def test_the_rooms_are_the_packages():
    table = PAGE.partition("## The rooms")[2].partition("\n## ")[0]
    rooms = re.findall(r"^\| `(\w+)` \|", table, re.M)
    assert sorted(rooms) == sorted(init.parent.name for init in ROOT.glob("sslkit/*/__init__.py"))


def test_the_drawing_has_the_layers_of_the_import_contract():
    drawn = [frozenset(re.findall(r"\w+", row)) for row in re.findall(r"^\| ((?:\w+[ |]*)+)\|   \w", PAGE, re.M)]
    assert drawn == layers_of_the_contract()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_that_a_page_names_exists(page):
    named = re.findall(r"`((?:sslkit|plugins|docs|tests|benchmarks|scripts|\.ci)/[\w./-]*)", page.read_text("utf-8"))
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_docs_page_is_linked_from_the_readme():
    readme = (ROOT / "README.md").read_text("utf-8")
    assert [p.name for p in ROOT.glob("docs/*.md") if f"(docs/{p.name}" not in readme] == []


def test_the_examples_of_contributing_keep_the_contracts():
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.S)
    names = {"__name__": "contributing"}
    for example in examples:
        exec(compile(example, "CONTRIBUTING.md", "exec"), names)
    checks = [check for name, check in names.items() if name.startswith("test_")]
    assert len(checks) == 3
    for check in checks:
        check()


def test_the_glossary_is_in_order():
    terms = re.findall(r"^\| ([^|]+) \| [^|]+ \|", (ROOT / "docs/glossary.md").read_text("utf-8"), re.M)[1:]
    assert len(terms) > 50
    assert terms == sorted(terms, key=str.lower)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_name_of_sslkit_that_a_page_uses_exists(page):
    named = set(re.findall(r"(?<![\w/])sslkit(?:\.\w+)+(?=[\s`(.,;:\[])", page.read_text("utf-8")))
    assert [name for name in named if not exists(name)] == []


def exists(name):
    found = import_module("sslkit")
    for part in name.split(".")[1:]:
        if not hasattr(found, part):
            try:
                import_module(f"{found.__name__}.{part}")
            except (ImportError, AttributeError):
                return False
        found = getattr(found, part)
    return True


def test_every_evaluator_has_its_protocol_on_the_page():
    headings = re.findall(r"^### (\w+)$", (ROOT / "docs/evaluation.md").read_text("utf-8"), re.M)
    assert sorted(headings) == plugins.names("evaluators")
