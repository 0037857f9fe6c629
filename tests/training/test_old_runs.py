"""Runs begun with an earlier version go on, or are refused in one sentence: what they left on disk keeps its names."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from helpers.small_methods import NEEDS, make
from safetensors.torch import load_file, save_file

import sslkit as library
from sslkit import plugins
from sslkit.backbones import create_backbone
from sslkit.config.base import Choice
from sslkit.errors import UserError
from sslkit.methods import RunInfo
from sslkit.runs.display import Display
from sslkit.runs.run import Run
from sslkit.training import engine

OLD_RUN = Path(__file__).parent / "old_run"
"""The readable files of a run of version 0.1.0, as it left them when modules were not in rooms yet."""

STATE = {
    "barlowtwins": "backbone projector.0 projector.1 projector.3 projector.4 projector.6",
    "byol": "backbone predictor.0 predictor.1 predictor.3 projector.0 projector.1 projector.3 "
    "target.0 target.1.0 target.1.1 target.1.3",
    "dino": "backbone centre head.0 head.2 head.4 progress prototypes "
    "teacher.0 teacher.1.0 teacher.1.2 teacher.1.4 teacher.2",
    "jigsaw": "backbone head.0 head.1 head.3 permutations tile_head.0",
    "mae": "backbone decoder.blocks.0.attn.proj decoder.blocks.0.attn.qkv decoder.blocks.0.mlp.fc1 "
    "decoder.blocks.0.mlp.fc2 decoder.blocks.0.norm1 decoder.blocks.0.norm2 decoder.embed decoder.mask_token "
    "decoder.norm decoder.pixels",
    "mocov2": "backbone head.0 head.2 key_encoder.0 key_encoder.1.0 key_encoder.1.2 queue.ages queue.pushed queue.rows",
    "nnclr": "backbone predictor.0 predictor.1 predictor.3 projector.0 projector.1 projector.3 projector.4 "
    "projector.6 projector.7 queue.ages queue.pushed queue.rows",
    "pirl": "backbone bank.last_update bank.rows bank.updates image_head transformed_head.0 transformed_head.2",
    "random": "backbone unused",
    "rotnet": "backbone head",
    "simclr": "backbone head.0 head.1 head.3 head.4",
    "simsiam": "backbone predictor.0 predictor.1 predictor.3 projector.0 projector.1 projector.3 projector.4 "
    "projector.6 projector.7",
    "splitbrain": "backbone frequency table to_colour.local to_colour.whole to_lightness.local to_lightness.whole",
    "supervised": "backbone head",
    "swav": "backbone progress projector.0 projector.1 projector.3 prototypes queues.0.ages queues.0.pushed "
    "queues.0.rows queues.1.ages queues.1.pushed queues.1.rows",
    "vicreg": "backbone expander.0 expander.1 expander.3 expander.4 expander.6",
}
"""What a checkpoint holds of each method that old runs may have: modules with weights, and tensors of its own."""
OF_MODULES = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


@pytest.mark.parametrize("name", STATE)
def test_the_names_in_a_checkpoint_stay(name):
    trained = plugins.find("methods", name).trained_backbone(Choice(name=NEEDS.get(name, "shufflenetv2")))
    method = make(name, create_backbone(trained, image_size=32), RunInfo(images=20, classes=10, image_size=32))
    backbones = [n for n, module in method.named_modules() if type(module) is type(method.backbone)]
    assert {_holder(key, backbones) for key in method.state_dict()} == set(STATE[name].split())


def _holder(key: str, backbones: list[str]) -> str:
    """The module that a tensor belongs to; the whole of a backbone, for the names in it are its library's."""
    module, _, last = key.rpartition(".")
    return next((b for b in backbones if key.startswith(f"{b}.")), module if last in OF_MODULES else key)


def test_settings_of_an_old_run_are_read_and_written_as_they_were():
    run = Run.open(OLD_RUN)
    before, now = yaml.safe_load((OLD_RUN / "config.yaml").read_text()), yaml.safe_load(run.config.to_yaml())
    assert now["data"].pop("max_pixels") == 178_956_970, "what Pillow allowed"
    assert {key: _as_then(now[key], then) for key, then in before.items()} == before
    assert now.keys() - before.keys() == {"threads", "drop_last", "budget", "stall_timeout"}, (
        "a setting that is new needs a default that changes no old run"
    )
    assert run.config.drop_last, "an epoch of an old run had whole batches only"
    assert run.origins["method.negatives"] == "command line"
    assert run.derived["execution"]["channels_last"] is True
    assert [m["step"] for m in run.metrics] == [2, 4, 6]
    assert [e["epoch"] for e in run.evaluations] == [0, 3]


def _as_then(now: object, then: object) -> object:
    """A setting without the options that its component did not have then."""
    return {key: now[key] for key in then} if isinstance(then, dict) else now


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The old run once more, undisturbed."""
    settings = yaml.safe_load((OLD_RUN / "config.yaml").read_text())
    path = tmp_path_factory.mktemp("old") / "run"
    return library.run(**settings | {"out": path, "report": False, "drop_last": True}, quiet=True)


@pytest.fixture
def old(whole, tmp_path):
    """The old run without its last epoch; checkpoints are this machine's, so that figures are."""
    path = tmp_path / "run"
    shutil.copytree(whole.path, path, ignore=shutil.ignore_patterns("epoch-0003", "backbone.safetensors"))
    for file in OLD_RUN.iterdir():
        shutil.copy(file, path)
    return Run.open(path)


def test_an_old_run_goes_on_to_the_weights_of_an_undisturbed_one(old, whole):
    engine.resume(old.path, Display(quiet=True))
    ours, theirs = (load_file(run.checkpoints[-1] / "model.safetensors") for run in (old, whole))
    assert old.checkpoints[-1].name == "epoch-0003"
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_weights_under_other_names_are_refused_in_one_sentence(old):
    file = old.checkpoints[-1] / "model.safetensors"
    weights = load_file(file)
    save_file({key.replace("bank.", "memory."): value for key, value in weights.items()}, file)
    state = file.with_name("state.json")
    noted = json.loads(state.read_text())
    assert noted.pop("digest"), "old runs had none"
    noted["sha256"][file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    state.write_text(json.dumps(noted))
    with pytest.raises(
        UserError, match=r"^the method or the backbone has changed since the checkpoint; start a new run$"
    ):
        engine.resume(old.path, Display(quiet=True))


def test_a_setting_that_is_gone_is_named(old):
    settings = yaml.safe_load((old.path / "config.yaml").read_text())
    settings["method"]["bank_size"] = 7
    (old.path / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(UserError, match=r"method\.bank_size"):
        engine.resume(old.path, Display(quiet=True))
