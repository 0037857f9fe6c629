"""Properties of settings: whatever is typed, written in a recipe or used as a name is accepted or a mistake."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sslkit.config.plain import guessed
from sslkit.config.reading import NotYaml, read_yaml
from sslkit.errors import UserError
from sslkit.training.preflight import resolve_new

FEW = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
KEYS = [
    "method", "backbone", "data", "augment", "evaluators", "eval_data", "optimizer", "trackers", "carbon", "epochs",
    "budget", "batch_size", "drop_last", "micro_batch", "accumulate", "devices", "stall_timeout", "precision",
    "compile", "tune", "kernels", "device", "loader", "workers", "threads", "seed", "out", "log_every", "report",
    "recipe", "optimizer.lr", "optimizer.betas", "optimizer.schedule", "carbon.region", "method.momentum",
    "method.name", "data.image_size", "data.mean", "data.cache", "augment.views", "augment.blur.p", "augment.blur",
    "augment.crop.scale", "backbone.stem", "backbone.pretrained", "evaluators.knn", "evaluators.knn.k", "eval_data.x",
]  # fmt: skip
OF_EACH_TYPE = ["method", "backbone", "data", "evaluators", "epochs", "out", "recipe", "tune", "augment.crop.scale"]
HOSTILE = [
    "", "null", "~", "~/x", "~nobody", "true", "off", "010", "0x", "1:30", "1e400", "-1", "nan", ".inf", "1_0",
    "2024-01-01", "!!int abc", "!!python/name:os.system", "[", "]", "{", "{}", "{a}", "[[[[", "&a *a", "*a", "#",
    "a: b", "- x", "'", '"', "..", "/dev/null", "/dev/zero", "\x00", "\n", "\udcff", "byol", "digits", "timm:",
    "timm:x", "torchvision:", ":", ".", "{name: byol, momentum: 0.9}", "{name: {a: b}}", "[knn, linear]", "{knn: }",
    "9" * 5000, "x" * 5000, "auto", "0", "3", "0.5",
]  # fmt: skip
keys = st.sampled_from(KEYS) | st.text(max_size=8) | st.lists(st.sampled_from(KEYS), max_size=3).map(".".join)
values = st.sampled_from(HOSTILE) | st.text(max_size=12)
words = st.lists(st.builds("{}={}".format, keys, values) | st.text(max_size=8), min_size=1, max_size=4)
trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | values,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


def accepted_or_a_mistake(given_words, recipe=None):
    try:
        resolve_new(given_words, recipe)
    except UserError as error:
        message = str(error)
    else:
        message = None
    assert message is None or message.strip()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@FEW
@given(typed=words)
@example(typed=["out=~nobody", "data=~nobody"])
@example(typed=["evaluators.=3", "evaluators. .=1"])
def test_any_words_are_settings_or_mistakes(typed, folder):
    accepted_or_a_mistake(typed)


@pytest.mark.parametrize("value", HOSTILE)
def test_hostile_values_of_every_key_are_settings_or_mistakes(value, folder):
    for key in OF_EACH_TYPE:
        accepted_or_a_mistake([f"{key}={value}"])


@FEW
@given(tree=st.dictionaries(keys, trees, max_size=4))
def test_any_recipe_is_settings_or_mistakes(tree, folder):
    recipe = folder / "r.yaml"
    recipe.write_text(json.dumps(tree), encoding="utf-8", errors="surrogatepass")
    accepted_or_a_mistake([], recipe)


@FEW
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_a_recipe_or_a_mistake(content, folder):
    recipe = folder / "r.yaml"
    recipe.write_bytes(content)
    accepted_or_a_mistake([], recipe)


@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet="ab01:-{}[],&*!#'\"\n |>%?~.", max_size=30))
def test_any_text_is_yaml_or_not(text):
    try:
        guessed(read_yaml(text))
    except NotYaml as error:
        message = str(error)
    else:
        message = ""
    assert "\n" not in message


@FEW
@given(name=st.text(st.characters(exclude_characters="/\x00", exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_a_folder_of_any_name_is_the_one_that_is_used(name, folder):
    named = folder / name
    if name in (".", "..") or len(name.encode()) > 250:
        return
    named.mkdir(exist_ok=True)
    config = resolve_new(["data=digits", f"out=./{name}"]).config
    assert config.out == Path(name)
