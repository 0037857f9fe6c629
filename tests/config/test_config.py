"""Layers, origins, and every mistake in one message."""

import subprocess
import sys

import pytest
import yaml

from sslkit.config.resolve import resolve
from sslkit.errors import UserError
from sslkit.training.preflight import resolve_new


def mistakes(*words, recipe=None):
    with pytest.raises(UserError) as caught:
        resolve_new(words, recipe)
    return str(caught.value)


def test_command_line_beats_recipe_beats_data_set_beats_method_beats_default(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("method: {name: byol, momentum: 0.9}\nepochs: 3\nbatch_size: 32\n")
    resolved = resolve(["epochs=7", "data=shapes"], recipe)
    assert resolved.config.epochs == 7
    assert resolved.origins["epochs"] == "command line"
    assert resolved.config.batch_size == 32
    assert resolved.origins["batch_size"] == f"recipe {recipe}"
    assert resolved.config.method.options.momentum == 0.9
    assert resolved.origins["optimizer.name"] == "method byol"
    assert "seed" not in resolved.origins
    digits = resolve(["data=digits"])
    assert digits.origins["augment.name"] == "data set digits"


def test_a_component_by_name_and_as_a_mapping_are_the_same(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("method:\n  name: simclr\n  temperature: 0.2\n")
    words = resolve(["method=simclr", "method.temperature=0.2"]).config
    assert resolve([], recipe).config.method == words.method


def test_naming_another_component_drops_the_options_of_the_one_it_replaces(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("method: {name: byol, momentum: 0.9}\n")
    assert resolve(["method=simclr"], recipe).config.method.name == "simclr"


def test_nested_options_keep_what_is_not_named():
    blur = resolve(["augment=simclr", "augment.blur.p=0", "data=shapes"]).config.augment.options.blur
    assert blur.p == 0
    assert blur.sigma == (0.1, 2.0)


def test_evaluators_are_replaced_as_a_list_and_tuned_by_name():
    every = resolve(["evaluators.knn.k=5"]).config.evaluators
    assert [e.name for e in every] == ["knn", "linear", "geometry"]
    assert every[2].options.only_unlabelled
    assert every[0].options.k == 5
    assert [e.name for e in resolve(["evaluators=[linear]"]).config.evaluators] == ["linear"]
    assert resolve(["evaluators=[]"]).config.evaluators == ()


def test_config_yaml_resolves_to_the_same_config(tmp_path):
    words = [
        "method=simclr",
        "augment.jitter.p=0.3",
        "evaluators.knn.k=7",
        "optimizer.clip_grad=1",
        "epochs=2",
    ]
    config = resolve(words).config
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml())
    assert resolve([], file).config == config
    assert yaml.safe_load(file.read_text())["method"]["name"] == "simclr"


def test_all_mistakes_come_in_one_message_with_suggestions(tmp_path):
    message = mistakes(
        "epocs=3", "batch_size=x", "method.momntum=0.9", "backbone=shuflenetv2", "optimizer.lr=-1", "seed",
        "augment.jiter.p=1", "evaluators=[knm]", "data=/not/there", "precision=fp8",
    )  # fmt: skip
    for words in (
        ["epocs: unknown; did you mean epochs?"],
        ["batch_size:", "'x'"],
        ["method.momntum: unknown; did you mean method.momentum?"],
        ["backbone:", "did you mean 'shufflenetv2'?"],
        ["optimizer.lr:", "greater than 0"],
        ["'seed' is not key=value"],
        ["augment.jiter", "unknown; did you mean augment.jitter?"],
        ["evaluators:", "did you mean 'knn'?"],
        ["data:", "/not/there"],
        ["precision:", "'bf16'"],
    ):
        assert any(all(word in line for word in words) for line in message.splitlines()), (words, message)
    assert message.startswith("10 mistakes in the settings")
    assert len(message.splitlines()) == 11


def test_paths_are_checked(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text/notes.txt").write_text("no image")
    assert "empty" in mistakes(f"data={tmp_path}/empty")
    assert "no image" in mistakes(f"data={tmp_path}/text").lower()
    assert "recipe" in mistakes(recipe=tmp_path / "missing.yaml")


def test_a_batch_larger_than_the_data_and_a_taken_out_are_mistakes(tmp_path):
    assert "more than the 1437 images" in mistakes("batch_size=2000")
    both = mistakes("batch_size=2000", "epocs=3")
    assert "more than the 1437 images" in both
    assert "epocs" in both
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/config.yaml").write_text("")
    assert f"sslkit resume {tmp_path}/taken" in mistakes(f"out={tmp_path}/taken")


def test_a_missing_device_is_a_mistake():
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert "use device=cpu" in mistakes("device=cuda")


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1\n"])
def test_a_recipe_that_is_no_mapping_is_one_mistake(tmp_path, text):
    recipe = tmp_path / "bad.yaml"
    recipe.write_text(text)
    assert str(recipe) in mistakes(recipe=recipe)


def test_wrong_values_of_the_command_line_are_named_by_their_word():
    assert "method.momentum: given twice" in mistakes("method.momentum=0.9", "method.momentum=0.8")
    assert "optimizer.lr: input should be a valid number" in mistakes("optimizer.lr=[1")


@pytest.mark.parametrize(
    "module", ["sslkit", "sslkit.cli.main", "sslkit.config.layers", "sslkit.config.recipes", "sslkit.cli.tables"]
)
def test_what_the_command_line_needs_first_imports_neither_torch_nor_pydantic(module):
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'pydantic'}} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("name", ["1", "007", "1.10", "2024-01-01", "yes"])
def test_names_and_paths_stay_as_they_are_written(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    config = resolve([f"out={name}", f"data={name}"]).config
    assert str(config.out) == name
    assert config.data.options.root == tmp_path / name
    assert resolve(["out=null", "epochs=010"]).config.out is None
