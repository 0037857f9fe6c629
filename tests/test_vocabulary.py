"""One word a thing: words that gave way to the field's own do not come back, in code, prose or tests."""

import re

import pytest
from helpers.paths import ROOT

RETIRED = {
    "Parts": "TrainingSetup",
    "raws": "image batches",
    "RawBatch": "ImageBatch",
    "way": "candidate or execution",
    "ways": "candidates or executions",
    "Known": "the name of what is known",
    "told": "reported, warned, given",
    "Dealt": "distributed",
    "say": "log, report, print",
    "slow_copy": "momentum_encoder",
    "Course": "EpochCurve",
    "Views": "MultiViewAugmentation",
    "Bank": "MemoryBank",
}
"""Word -> what stands in its place. A recipe that makes views is an augmentation: that no search can tell."""
PLACES = ("sslkit/**/*", "plugins/**/*", "docs/**/*.md", "tests/**/*.py", "benchmarks/*.py")
KINDS = {".py", ".md", ".yaml", ".toml", ".html", ".js", ".css"}
FILES = sorted(
    {
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "conftest.py",
        *(file for place in PLACES for file in ROOT.glob(place) if file.suffix in KINDS),
    }
    - {ROOT / "tests/test_vocabulary.py"}
)


def pattern(word: str) -> re.Pattern[str]:
    """The whole word; one that was a class only where it is code, for any sentence may begin with it."""
    return re.compile(rf"\b{word}\b" if word.islower() else rf"(?:[.(\[:=|,`] ?|class |import ){word}(?:[(),.:\]`|]|$)")


def test_the_files_are_found():
    assert len(FILES) > 200


@pytest.mark.parametrize("word", RETIRED)
def test_a_retired_word_stays_away(word):
    hits = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in FILES
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if pattern(word).search(line)
    ]
    assert not hits, f"{word!r} has given way to: {RETIRED[word]}\n" + "\n".join(hits)
