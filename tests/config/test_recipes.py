"""Recipes: by name and by path, one on another; and every one that is shipped resolves and trains."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
import yaml
from helpers.paths import ROOT

import sslkit
from sslkit import plugins
from sslkit.config import recipes
from sslkit.config.resolve import resolve
from sslkit.errors import UserError

TINY = {
    "data": "shapes",
    "data.image_size": 32,
    "data.n_train": 8,
    "data.n_test": 8,
    "batch_size": 4,
    "report": False,
    "epochs": 1,
}
"""Two steps on images that need no download."""
WORDS = [f"{key}={value}" for key, value in TINY.items()]
SONAWANE = ("efficientnet_lite0", "mobilenetv2", "resnet18", "shufflenetv2", "squeezenet")
MOBILE_PIRL = ("efficientnet_lite0", "mobilenetv2", "mobilenetv3_large", "resnet50", "shufflenetv2")
TABLES = {
    **{f"sonawane2021-{m}": SONAWANE for m in ("byol", "mocov2", "rotnet", "simclr", "splitbrain")},
    **{f"kucukkaya-pirl-{t}": MOBILE_PIRL for t in ("both", "jigsaw", "rotation")},
}
"""The backbones of the tables whose recipes leave the backbone to the user."""
FEW = (
    ("ang2022-mobilenetv3-small-512", None),
    ("kucukkaya-pirl-both", "mobilenetv2"),
    ("sonawane2021-rotnet", "shufflenetv2"),
    ("sonawane2021-splitbrain", "squeezenet"),
)
"""Recipe and backbone of the rows that are always trained; the slow tests train all."""


def content(name):
    return yaml.safe_load(recipes.text(name))


BASES = {content(name)["recipe"] for name in recipes.names() if "recipe" in content(name)}
ROWS = [(name, backbone) for name in recipes.names() if name not in BASES for backbone in TABLES.get(name, (None,))]
"""Every recipe that no other is based on, with each backbone of its paper's table."""


def mistakes(*words, recipe=None):
    with pytest.raises(UserError) as caught:
        resolve(words, recipe)
    return str(caught.value)


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_resolves_and_says_where_it_comes_from(name):
    assert re.match(r"# .*(20\d\d|Mobile-PIRL|lightly|solo-learn)", recipes.text(name))
    assert resolve([f"recipe={name}", *WORDS]).config.data.name == "shapes"


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_states_more_than_a_backbone(name):
    """What is one word on the command line needs no file: `recipe=sonawane2021-byol backbone=shufflenetv2`."""
    own = {key for key in content(name) if key != "recipe"}
    assert own != {"backbone"} or not isinstance(content(name)["backbone"], str)


def enough_images(name):
    """Batch norm in groups needs two images in each."""
    splits = getattr(resolve([f"recipe={name}", *WORDS]).config.method.options, "bn_splits", 1)
    batch = max(TINY["batch_size"], 2 * splits)
    return {"batch_size": batch, "data.n_train": 2 * batch}


@pytest.mark.parametrize(
    ("name", "backbone"),
    [pytest.param(*row, marks=() if row in FEW else pytest.mark.slow) for row in ROWS],
)
def test_every_recipe_trains(name, backbone, tmp_path):
    given = TINY | enough_images(name) | ({"backbone": backbone} if backbone else {})
    run = sslkit.run(recipe=name, out=tmp_path / "run", evaluators=[], log_every=1, quiet=True, **given)
    assert run.backbone_file.is_file()
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


def test_the_few_that_are_always_trained_are_there():
    assert set(FEW) <= set(ROWS)


@pytest.mark.parametrize(
    ("backbone", "batch"),
    [
        ("mobilenetv3_small", 1024),
        ("mobilenetv3_small", 512),
        ("mobilenetv3_large", 1024),
        ("mobilenetv3_large", 512),
        ("mobilenetv3_large", 256),
        ("resnet18", 512),
        ("resnet50", 512),
    ],
)
def test_ang_s_table_1(backbone, batch):
    config = resolve([], f"ang2022-{backbone.replace('_', '-')}-{batch}").config
    assert (config.backbone.name, config.batch_size, config.epochs) == (backbone, batch, 1000)
    assert config.data.flat()["image_size"] == 36
    head = config.method.options
    assert (config.method.name, head.activation, head.dropout, head.norm, head.dim) == (
        "simclr",
        "hardswish",
        0.2,
        False,
        128,
    )
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.lr_scaling, optimizer.schedule) == (
        "adam",
        1e-3,
        "none",
        "constant",
    )
    assert config.augment.options.blur.p == 0
    assert {e.name: e.options.model_dump() for e in config.evaluators}["knn"]["k"] == 200


@pytest.mark.parametrize("method", ["rotnet", "mocov2", "splitbrain", "simclr", "byol"])
@pytest.mark.parametrize("backbone", SONAWANE)
def test_sonawane_s_table_1(method, backbone):
    resolved = resolve([f"backbone={backbone}"], f"sonawane2021-{method}")
    config = resolved.config
    assert (config.method.name, config.backbone.name) == (method, backbone)
    assert (config.data.name, config.data.flat()["image_size"], config.checkpoint_every) == ("stl10", 96, 5)
    assert not any(origin.startswith("recipe") for key, origin in resolved.origins.items() if "optimizer" in key)


@pytest.mark.parametrize("depth", [6, 8, 12])
def test_beasse_and_kabouri_s_table_1(depth):
    config = resolve(["data=shapes"], f"beasse2024-vit-{depth}").config
    vit = config.backbone.options
    assert (vit.depth, vit.heads, vit.dim, vit.patch, vit.dropout) == (depth, depth, 768, 16, 0.2)
    assert (config.batch_size, config.epochs, config.optimizer.lr, config.augment.name) == (40, 100, 1e-4, "beasse")


@pytest.mark.parametrize("transforms", ["jigsaw", "rotation", "both"])
@pytest.mark.parametrize("backbone", MOBILE_PIRL)
def test_mobile_pirl_s_transformations_on_each_backbone(transforms, backbone):
    config = resolve([f"backbone={backbone}"], f"kucukkaya-pirl-{transforms}").config
    expected = {"both": {"rotation", "jigsaw"}}.get(transforms, {transforms})
    assert set(config.method.options.transforms) == expected
    assert (config.backbone.name, config.data.name) == (backbone, "stl10")


def test_a_recipe_that_leaves_the_data_open_asks_for_it():
    assert "data: needs a name" in mistakes("recipe=chen2020-resnet50", "batch_size=16")


def test_the_nearest_word_wins_and_each_value_names_its_recipe(tmp_path):
    (tmp_path / "base.yaml").write_text("method: {name: simclr, temperature: 0.3, dim: 64}\nepochs: 3\nseed: 1\n")
    (tmp_path / "mine.yaml").write_text("recipe: base.yaml\nepochs: 4\nmethod.dim: 32\n")
    resolved = resolve(["seed=5", "data=shapes"], tmp_path / "mine.yaml")
    config = resolved.config
    assert (config.epochs, config.seed, config.method.options.temperature, config.method.options.dim) == (4, 5, 0.3, 32)
    mine, base = f"recipe {tmp_path}/mine.yaml", f"recipe {tmp_path}/base.yaml"
    origins = [resolved.origins[key] for key in ("epochs", "seed", "method.temperature", "method.dim")]
    assert origins == [mine, "command line", base, mine]
    assert resolve([f"recipe={tmp_path}/mine.yaml", "seed=5", "data=shapes"]).config == config


def test_one_s_own_recipe_on_a_shipped_one(tmp_path):
    (tmp_path / "mine.yaml").write_text("recipe: lightly-cifar10-byol-resnet18\nepochs: 7\n")
    resolved = resolve([w for w in WORDS if not w.startswith("epochs=")], tmp_path / "mine.yaml")
    assert resolved.config.epochs == 7
    assert resolved.origins["optimizer.lr"] == "recipe lightly-cifar10-byol-resnet18"
    assert resolved.origins["optimizer.name"] == "recipe lightly-cifar10"
    assert resolved.config.optimizer.lr == 0.03


def test_another_method_drops_the_options_of_the_recipe_s(tmp_path):
    config = resolve(["method=byol", *WORDS], "ang2022-resnet18-512").config
    assert (config.method.name, config.method.options.hidden, config.optimizer.name) == ("byol", 4096, "adam")


def test_circles_are_a_mistake_and_reported_with_the_others(tmp_path):
    (tmp_path / "a.yaml").write_text("recipe: b.yaml\n")
    (tmp_path / "b.yaml").write_text("recipe: ./a.yaml\nepocs: 3\n")
    message = mistakes(recipe=tmp_path / "a.yaml")
    assert f"recipe: {tmp_path}/a.yaml is based on itself, through {tmp_path}/b.yaml" in message
    assert "epocs: unknown" in message
    (tmp_path / "self.yaml").write_text("recipe: self.yaml\n")
    assert "self.yaml is based on itself" in mistakes(recipe=tmp_path / "self.yaml")


def test_an_unknown_recipe_is_reported_with_the_nearest_name(tmp_path):
    assert "did you mean 'ang2022-resnet18-512'?" in mistakes("recipe=ang2022-resnet18-521")
    assert "`sslkit list recipes`" in mistakes("recipe=xyz")
    (tmp_path / "mine.yaml").write_text("recipe: nothing.yaml\n")
    assert "'nothing.yaml' is neither the name of a recipe nor a file" in mistakes(recipe=tmp_path / "mine.yaml")
    assert "recipe: given twice" in mistakes("recipe=ang2022", recipe="beasse2024-vit")
    with pytest.raises(UserError, match="did you mean 'ang2022'"):
        sslkit.run(recipe="ang222")


@pytest.mark.parametrize(
    "row", [row for row in plugins.components("recipes") if row.distribution != "sslkit"], ids=lambda row: row.name
)
def test_a_plugin_s_recipe_is_of_its_own_methods_and_packed_with_it(row):
    name = resolve([f"recipe={row.name}", *WORDS]).config.method.name
    assert [c.distribution for c in plugins.components("methods") if c.name == name] == [row.distribution]
    package = ROOT / "plugins" / row.distribution
    [declared] = tomllib.loads((package / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"].values()
    assert any(row.target in (package / row.distribution.replace("-", "_")).glob(pattern) for pattern in declared)


@pytest.mark.parametrize(
    "name", ["grill2020-byol", "chen2020-mocov2", "zbontar2021-barlowtwins", "bardes2022-vicreg", "caron2020-swav"]
)
def test_a_method_s_own_recipe_trains_as_its_paper_does(name):
    resolved = resolve([f"recipe={name}", "data=shapes", "data.n_train=8"])
    defaults = plugins.find("methods", resolved.config.method.name).defaults
    optimizer = {f"optimizer.{key}": value for key, value in resolved.config.optimizer.model_dump().items()}
    assert optimizer == optimizer | defaults
    assert not [key for key, origin in resolved.origins.items() if origin.startswith("auto")]


def test_list_show_and_dry_run(sslkit, tmp_path):
    rows = json.loads(sslkit("list", "recipes", "--json").stdout)
    assert [row["name"] for row in rows] == recipes.names()
    first = next(row for row in rows if row["name"] == "ang2022-mobilenetv3-large-512")
    assert first["summary"] == "Ang 2022, Table 1: SimCLR, MobileNetV3-Large, batch 512, CIFAR-10"
    assert set(first) == {"name", "summary", "distribution"}
    assert "beasse2024-vit-6" in sslkit("list", "recipes").stdout
    shown = sslkit("show", "recipes", "beasse2024-vit-6").stdout
    assert shown == (ROOT / "sslkit/config/recipes/beasse2024-vit-6.yaml").read_text()
    assert sslkit("show", "recipes").returncode == 2
    assert "did you mean 'ang2022'" in sslkit("show", "recipes", "ang222").stderr
    for words in (["recipe=ang2022-resnet18-512"], ["ang2022-resnet18-512"]):
        lines = sslkit("run", *words, "epochs=3", "--dry-run").stdout.splitlines()
        [batch_size] = [line.split() for line in lines if line.startswith("batch_size ")]
        [epochs] = [line.split() for line in lines if line.startswith("epochs ")]
        assert batch_size[1:] == ["512", "recipe", "ang2022-resnet18-512"]
        assert epochs[1:] == ["3", "command", "line"]
    assert list(tmp_path.iterdir()) == []


def test_listing_recipes_needs_neither_torch_nor_pydantic():
    code = (
        "import sys; from sslkit.config import recipes; [recipes.summary(n) for n in recipes.names()]; "
        "sys.exit(bool({'torch', 'pydantic', 'numpy'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.slow
def test_recipes_are_in_the_wheel(tmp_path):
    # A copy, since building leaves a folder in the source tree.
    source = shutil.copytree(ROOT / "sslkit", tmp_path / "source/sslkit").parent
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    words = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(source),
    ]
    subprocess.run(words, check=True, capture_output=True, timeout=280)
    [wheel] = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".yaml")}
    own = {c.name for c in plugins.components("recipes") if c.distribution == "sslkit"}
    assert packed == {f"sslkit/config/recipes/{name}.yaml" for name in own}


def test_other_images_keep_the_recipe_s_size(tmp_path):
    """The size suits the method and the backbone; what else is said of the recipe's data set is about its files."""
    (tmp_path / "photos").mkdir()
    words = [f"data={tmp_path / 'photos'}"]
    config = resolve(words, "ang2022-mobilenetv3-large-512").config
    assert (config.data.name, config.data.flat()["image_size"]) == ("folder", 36)
    config = resolve([*words, "data.image_size=null"], "ang2022-mobilenetv3-large-512").config
    assert config.data.flat()["image_size"] is None
