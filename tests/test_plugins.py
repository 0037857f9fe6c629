"""Real packages, built, installed and used from the command line."""

import json
import os
import re
import subprocess
import sys

import pytest
from helpers.paths import PYTHONPATH, ROOT

PYPROJECT = """
[project]
name = "{name}"
version = "0.1"

[project.entry-points.sslkit]
{name} = "{module}"
"""

BROKEN = {
    "sslkit-absent": "import a_module_that_is_not_there",
    "sslkit-typo": """
from sslkit import hookimpl

@hookimpl
def register_method(register):
    register("never", object)

@hookimpl
def register_backbones(register):
    register("fine", "sslkit_typo:fine")

def fine(config):
    \"\"\"A backbone beside a misspelt hook.\"\"\"
""",
    "sslkit-arguments": """
from sslkit import hookimpl

@hookimpl
def register_methods(register, extra):
    pass
""",
    "sslkit-clash": """
from sslkit import hookimpl

@hookimpl
def register_methods(register):
    register("byol", object)
    register("clashing", object)
""",
    "sslkit-raises": """
from sslkit import hookimpl

@hookimpl
def register_methods(register):
    raise RuntimeError("no luck")
""",
}


def blocks(page):
    """{file name: text} of the code blocks with a title in a page of docs."""
    text = (ROOT / "docs" / page).read_text()
    return dict(re.findall(r"```\w+ title=(\S+)\n(.*?)```", text, re.S))


def build(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def install(site, *folders):
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    subprocess.run([*pip, "--target", str(site), *map(str, folders)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The package of docs/write-a-plugin.md, installed in a folder of its own."""
    source, site = tmp_path_factory.mktemp("tiny"), tmp_path_factory.mktemp("good")
    build(source, blocks("write-a-plugin.md"))
    install(site, source)
    return {"PYTHONPATH": f"{site}{os.pathsep}{PYTHONPATH}"}


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    """Five packages, each with another fault."""
    site, folders = tmp_path_factory.mktemp("bad"), []
    for name, text in BROKEN.items():
        folder = tmp_path_factory.mktemp(name)
        module = name.replace("-", "_")
        build(folder, {"pyproject.toml": PYPROJECT.format(name=name, module=module), f"{module}.py": text})
        folders.append(folder)
    install(site, *folders)
    return {"PYTHONPATH": f"{site}{os.pathsep}{PYTHONPATH}"}


def test_list_shows_what_an_installed_package_brings(sslkit, good):
    for kind, name in [
        ("methods", "tiny"),
        ("backbones", "tinynet"),
        ("augmentations", "tinyviews"),
        ("evaluators", "spread"),
        ("datasets", "noise"),
    ]:
        rows = {row["name"]: row for row in json.loads(sslkit("list", kind, "--json", env=good).stdout)}
        assert rows[name]["distribution"] == "sslkit-tiny"
        assert rows[name]["summary"]
        assert "sslkit" in {r["distribution"] for r in rows.values()}


def test_installed_parts_work_together_from_the_command_line(sslkit, good, tmp_path):
    done = sslkit(
        "run", "method=tiny", "backbone=tinynet", "data=noise", "evaluators=[spread,knn]", "epochs=1", "batch_size=32",
        "out=tiny", env=good,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "tiny/evaluations.jsonl").read_text().splitlines()]
    assert {r["evaluator"] for r in records} == {"spread", "knn"}
    assert "epoch 1  spread: spread 0." in done.stderr
    assert all(r["spread"] > 0 for r in records if r["evaluator"] == "spread")
    assert (tmp_path / "tiny/config.yaml").read_text().count("tinyviews") == 1


def test_a_plugin_s_command_runs(sslkit, good):
    assert sslkit("tiny", env=good).stdout == "hello from sslkit-tiny\n"
    assert "Say hello from the plugin" in sslkit("--help", env=good).stdout


def test_show_prints_a_plugin_s_settings(sslkit, good):
    shown = sslkit("show", "methods", "tiny", env=good).stdout
    assert "method.temperature" in shown
    assert "Temperature of the softmax." in shown


def test_every_fault_is_named_with_cause_and_mend_and_the_rest_works(sslkit, bad):
    done = sslkit("list", env=bad)
    assert done.returncode == 0
    for words in (
        ["sslkit-absent", "a_module_that_is_not_there", "pip uninstall sslkit-absent"],
        ["sslkit-typo", "'register_method'", "did you mean 'register_methods'?"],
        ["sslkit-arguments", "extra", "docs/hooks.md"],
        ["'byol' is offered by both sslkit and sslkit-clash", "pip uninstall sslkit-clash"],
        ["sslkit-raises", "no luck", "register_methods"],
    ):
        assert any(all(word in line for word in words) for line in done.stderr.splitlines()), (
            words,
            done.stderr,
        )
    assert len(done.stderr.splitlines()) == 5
    assert "Traceback" not in done.stderr
    names = [row["name"] for row in json.loads(sslkit("list", "backbones", "--json", env=bad).stdout)]
    assert "fine" in names
    assert "clashing" in sslkit("list", "methods", env=bad).stdout


def test_a_clash_stops_only_who_asks_for_that_name(sslkit, bad):
    asked = sslkit("run", "method=byol", "--dry-run", env=bad)
    assert asked.returncode == 2
    assert "offered by both sslkit and sslkit-clash" in asked.stderr
    assert sslkit("run", "method=simclr", "--dry-run", env=bad).returncode == 0


def test_sslkit_plugins_chooses_what_is_loaded(sslkit, bad, good):
    both = {"PYTHONPATH": f"{good['PYTHONPATH']}{os.pathsep}{bad['PYTHONPATH']}"}
    only = sslkit("list", "methods", "--json", env={**both, "SSLKIT_PLUGINS": "tiny"})
    assert only.stderr == ""
    assert "tiny" in only.stdout
    none = sslkit("list", "methods", "--json", env={**both, "SSLKIT_PLUGINS": ""})
    assert {row["distribution"] for row in json.loads(none.stdout)} == {"sslkit"}
    absent = sslkit("list", env={**both, "SSLKIT_PLUGINS": "tinny"})
    assert "did you mean 'tiny'?" in absent.stderr


def test_help_and_list_import_no_torch():
    code = """
import sys
from click.testing import CliRunner
from sslkit.cli.main import cli
for words in (["--help"], ["list"], ["list", "methods", "--json"]):
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
heavy = {"torch", "timm", "kornia", "torchvision", "sklearn", "ffcv", "pydantic"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_every_hook_is_documented_with_its_arguments():
    from sslkit import hookspecs

    page = (ROOT / "docs/hooks.md").read_text()
    for name, spec in vars(hookspecs).items():
        if name.startswith(("register_", "run_")):
            arguments = ", ".join(spec.__code__.co_varnames[: spec.__code__.co_argcount])
            assert f"### {name}({arguments})\n" in page
