"""Settings as they are typed: the field decides what text means, and YAML is read by its own rules of today."""

import time
from pathlib import Path

import pytest

from sslkit.config.reading import NotYaml, read_yaml
from sslkit.config.resolve import resolve
from sslkit.errors import UserError
from sslkit.training.preflight import resolve_new


def refused(*words, recipe=None):
    with pytest.raises(UserError) as caught:
        resolve_new(words, recipe)
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["photos #2", "[old] photos", "a: b", "- x", "{x}", "*x", "&x", "!x y", "@x", "`x", "%x", "'x", "x ", "~x", "|"],
)
def test_data_and_out_are_the_folders_that_are_typed(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    (tmp_path / "photos").mkdir()
    config = resolve([f"data={name}", f"out={name}/run"]).config
    assert config.data.options.root == tmp_path / name
    assert config.out == Path(name) / "run"


def test_numbers_are_decimal_as_people_write_them():
    config = resolve(["seed=010", "epochs=1e2", "optimizer.lr=5e-2", "batch_size=0x10"]).config
    assert (config.seed, config.epochs, config.optimizer.lr, config.batch_size) == (10, 100, 0.05, 16)


def test_a_time_is_no_number_of_steps():
    assert "log_every" in refused("log_every=1:30")
    assert "optimizer.lr" in refused("optimizer.lr=inf")
    assert "epochs" in refused("epochs=99999999999999999999")


def test_lists_and_mappings_still_work():
    words = ["evaluators=[knn, linear]", "data=shapes", "augment=simclr", "augment.crop.scale=[0.2,1]"]
    config = resolve([*words, "optimizer={name: sgd, lr: 010}", "trackers=[tensorboard]", "eval_data=null"]).config
    assert [e.name for e in config.evaluators] == ["knn", "linear"]
    assert config.augment.options.crop.scale == (0.2, 1)
    assert (config.optimizer.name, config.optimizer.lr) == ("sgd", 10)
    assert config.trackers == ("tensorboard",)
    assert config.eval_data is None
    assert [e.options.k for e in resolve(["evaluators={knn: {k: 7}}"]).config.evaluators] == [7]
    extra = resolve(["augment.extra=[RandomPerspective, {RandomErasing: {p: 0.3}}]"]).config.augment.options.extra
    assert extra == ({"RandomPerspective": {}}, {"RandomErasing": {"p": 0.3}})


def test_a_tilde_is_the_home_folder_everywhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = resolve(["out=~/runs/a", "backbone.pretrained=~/w.safetensors"]).config
    assert config.out == tmp_path / "runs/a"
    assert config.backbone.options.pretrained == tmp_path / "w.safetensors"
    assert resolve(["out=~"]).config.out == tmp_path


def test_a_recipe_is_read_by_yaml_1_2(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("seed: 010\nout: 2024-01-01\ntune: off\nreport: false\ncheckpoint_every: '3'\ndrop_last: yes\n")
    config = resolve([], recipe).config
    assert (config.seed, config.out, config.tune, config.report) == (10, Path("2024-01-01"), "off", False)
    assert config.checkpoint_every == 3
    assert config.drop_last


@pytest.mark.parametrize(
    "word",
    [
        "out=2024-13-45/x", "seed=!!int abc", "seed=" + "9" * 5000, "method=", "epochs=" + "[" * 3000,
        "data=" + "x" * 5000, "recipe=" + "x" * 5000,
        "evaluators={knn: 3}", "evaluators=3", "evaluators.knn=3", "eval_data.image_size=8",
        "method.name.x=3", "evaluators=[[knn]]", "method=[byol]", "=3", ".=3", "seed..a=3",
        "optimizer={lr: {a: 1}}",        "backbone={name: [1]}", "recipe=/dev/zero", "threads=10000000000000",
    ],
)  # fmt: skip
def test_hostile_words_are_mistakes_in_a_short_sentence(word):
    if word.startswith("out="):
        assert resolve_new([word]).config.out == Path("2024-13-45/x")
        return
    message = refused(word)
    assert "mistake" in message
    assert max(map(len, message.splitlines())) < 700


@pytest.mark.parametrize(
    "text",
    [
        "seed: !!int abc", "seed: !!python/object:os.system x", "seed: " + "9" * 5000, "epochs: " + "[" * 3000,
        "a: &a [*a]", "a: &a {b: *a}", "a: 2024-13-45", "seed: !!timestamp 2024-01-01", "evaluators: {knn: 3}",
        "seed: 1\nseed: 2", "? [a, b]\n: 3", "a: 1\n---\nb: 2", 'a: "\\UFFFFFFFF"',
        "%YAML 9" + "9" * 5000 + ".1\n---\na: 1",
        "a: \x07", "seed: 2001-01-01", "method:", "evaluators: !!set {knn}", "x" * 300_000,
    ],
)  # fmt: skip
def test_hostile_recipes_are_mistakes(text, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(text)
    before = time.monotonic()
    assert "mistake" in refused(recipe=recipe)
    assert time.monotonic() - before < 5


def test_aliases_that_expand_for_ever_are_refused_and_others_are_read():
    laughs = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij")
    )
    with pytest.raises(NotYaml, match="more than 10,000 values"):
        read_yaml(laughs)
    assert read_yaml("a: &a {k: 1}\nb: *a") == {"a": {"k": "1"}, "b": {"k": "1"}}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["backbone=timm:resnet18x"], "timm has no model called 'resnet18x'; did you mean 'resnet18'"),
        (["backbone=torchvision:inception_v3", "data.image_size=32"], "inception_v3 cannot have the small stem"),
        (["backbone=vit_tiny", "backbone.stem=small"], ""),
    ],
)
def test_networks_are_tried_before_anything_is_packed(words, said):
    if said:
        assert said in refused("data=shapes", *words)
    else:
        assert resolve_new(["data=shapes", *words]).config.backbone.name == "vit_tiny"
