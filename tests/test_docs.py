"""Every command and every Python example in the README and the docs runs."""

import re
import shlex

import pytest
from helpers.paths import ROOT
from PIL import Image

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("plugins/*/README.md"))]
SHORT = ["epochs=1", "evaluators.linear.epochs=2"]
"""Settings that make a command of the docs short; they replace the ones it names."""
PHOTOS, DIGITS = [*SHORT, "batch_size=16"], [*SHORT, "batch_size=128"]
"""With a few steps in an epoch of the 40 photos, and of the 1437 digits, which are the data if a command names none."""
SHRINKING = ["backbone.stem=imagenet"]
"""At 32 px, a tenth of the work of the stem that keeps the resolution; not for networks of patches."""
A_MOMENT = ["evaluators.cost.seconds=0.2"]
"""Where the cost of a network is measured, for at most five seconds otherwise."""
ONE_ROUND = ["--repeats", "1", "tune=off"]
"""The same for `sslkit bench`, which would compile the network to see whether that is faster."""


def commands(page):
    """The `$ sslkit ...` lines of a page; plugin commands are run by test_plugins.py."""
    lines = re.findall(r"^\$ (sslkit .*)$", page.read_text(), re.M)
    return [line.partition("   #")[0] for line in lines]


def shortened(line):
    words = shlex.split(line)[1:]
    if words[0] not in ("run", "bench"):
        return words + A_MOMENT * any("cost" in word for word in words)
    short = PHOTOS if "data=photos/" in words else DIGITS
    if short == PHOTOS and not {"method=mae", "backbone=vit_tiny"} & set(words):
        short = short + SHRINKING
    keys = {word.partition("=")[0] for word in short}
    return [w for w in words if w.partition("=")[0] not in keys] + short + ONE_ROUND * (words[0] == "bench")


def photos(folder, n=40):
    """Two classes of small pictures, neither square nor all of one size."""
    for i in range(n):
        path = folder / ("dark", "bright")[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.linear_gradient("L").resize((48 + i % 3, 40)).point(lambda v, b=i % 2: v // 2 + 128 * b).save(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder that holds what the docs speak of."""
    folder = tmp_path_factory.mktemp("docs")
    photos(folder / "photos")
    photos(folder / "other_photos")
    return folder


ELSEWHERE = ("write-a-plugin.md", "fine-tune.md")
"""Pages whose commands a test of their own runs: the plugin's with the plugin, fine-tuning's with its examples."""
CASES = [(page.name, line) for page in PAGES if page.name not in ELSEWHERE for line in commands(page)]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("page", "line"), CASES, ids=lambda value: str(value)[:60])
def test_command_runs(sslkit, place, page, line):
    words = shortened(line)
    if "RUN" in words:
        words[words.index("RUN")] = "runs/for-docs"
        made = sslkit("run", "data=photos/", "out=runs/for-docs", *PHOTOS, cwd=place)
        assert made.returncode == 0 or "already contains files" in made.stderr, made.stderr
    done = sslkit(*words, cwd=place)
    assert done.returncode == 0, done.stderr


def test_the_fine_tuning_page_works_as_written(sslkit, tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs/fine-tune.md").read_text()
    [command] = commands(ROOT / "docs/fine-tune.md")
    assert sslkit(*shortened(command)).returncode == 0
    monkeypatch.chdir(tmp_path)
    tune, plain = re.findall(r"```python\n(.*?)```", page, re.S)
    exec(compile(tune, "fine-tune.md", "exec"), {})
    accuracy = float(re.search(r"not trained on: ([\d.]+)%", capsys.readouterr().out)[1])
    assert accuracy > 70
    exec(compile(plain, "fine-tune.md", "exec"), {})
    assert len(tune.strip().splitlines()) < 30


def test_the_readme_s_plain_torchvision_example_works(sslkit, tmp_path, monkeypatch):
    page = (ROOT / "README.md").read_text()
    assert sslkit("run", *DIGITS).returncode == 0
    monkeypatch.chdir(tmp_path)
    [example] = re.findall(r"```python\n(.*?)```", page, re.S)
    exec(compile(example, "README.md", "exec"), {})


def test_links_lead_somewhere():
    pages = [*PAGES, ROOT / "CONTRIBUTING.md"]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text())]
    assert links
    assert [f"{page.name}: {link}" for page, link in links if not (page.parent / link).exists()] == []
