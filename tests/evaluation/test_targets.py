"""Targets of evaluations: settings that they do not read are mistakes, and unfinished runs are called so."""

import json
import os

import pytest
import torch
from helpers.short_runs import SHORT_RUN
from safetensors.torch import save_file

import sslkit as library
from sslkit.backbones import create_backbone, load_weights
from sslkit.errors import UserError
from sslkit.runs.compare import as_markdown, table
from sslkit.runs.run import Run


class Killed(BaseException):
    """A kill, as far as a test can survive it."""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run of 50 epochs that ended after its first weights, before its first checkpoint."""
    path = tmp_path_factory.mktemp("killed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "save_checkpoint", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            library.run(**SHORT_RUN, epochs=50, out=path)
    return path


def test_weights_of_a_killed_run_are_measured_as_what_they_have_seen(killed, sslkit):
    done = sslkit("evaluate", str(killed))
    assert done.returncode == 0
    assert "is unfinished: its weights have seen 1 of 50 epochs" in done.stderr
    [record] = json.loads(sslkit("evaluate", str(killed), "--json").stdout)
    assert (record["epoch"], record["step"]) == (1, 2)


def test_random_initialisation_is_not_the_result_of_a_killed_run(killed, sslkit, tmp_path):
    (killed / "evaluations.jsonl").write_text(json.dumps(Run.open(killed).evaluations[0]) + "\n")
    rows = table([killed])
    assert (rows[0]["knn/top1"], rows[0]["finished"], rows[0]["epochs"]) == (None, False, 1)
    assert "1 of 50, unfinished" in as_markdown(rows)
    page = sslkit("report", str(killed), "--out", "page.html")
    assert page.returncode == 0, page.stderr
    text = (tmp_path / "page.html").read_text()
    assert "The run is unfinished: 1 of 50 epochs are trained." in text
    assert 'class="big"' not in text


def test_a_run_without_weights_says_how_to_get_them(killed, sslkit, tmp_path):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/config.yaml").write_bytes((killed / "config.yaml").read_bytes())
    done = sslkit("evaluate", "begun")
    assert done.returncode == 2
    assert "begun is unfinished: it has no weights yet; go on with: sslkit resume begun" in done.stderr


WORDS = [
    "backbone=resnet18",
    "backbone.stem=imagenet",
    "method=byol",
    "epochs=3",
    "augment=simclr",
    "out=x",
    "recipe=demo",
]


@pytest.mark.parametrize("word", WORDS)
def test_a_setting_that_changes_nothing_is_a_mistake(killed, sslkit, word):
    for target in (killed, killed / "backbone.safetensors"):
        if (word, target.suffix) == ("out=x", ".safetensors"):
            continue
        done = sslkit("evaluate", str(target), word)
        assert done.returncode == 2
        assert "changes nothing in an evaluation" in done.stderr


def test_the_name_of_a_backbone_is_not_another_s(sslkit):
    done = sslkit("evaluate", "squeezenet", "data=shapes", "backbone=resnet18")
    assert (done.returncode, "backbone: is squeezenet here" in done.stderr) == (2, True)


def test_a_pickle_is_named_with_the_command_that_converts_it(tmp_path, sslkit):
    net = create_backbone("squeezenet", 32)
    torch.save({"state_dict": net.state_dict()}, tmp_path / "w.pth")
    done = sslkit("evaluate", "w.pth", "backbone=squeezenet", "data=shapes")
    assert done.returncode == 2
    assert "w.pth cannot be read as safetensors: it is a pickle" in done.stderr
    command = done.stderr.strip().partition("convert it once with: ")[2]
    assert os.system(f"cd {tmp_path} && {command}") == 0
    again = create_backbone("squeezenet", 32, pretrained=tmp_path / "w.safetensors")
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in net.state_dict().items())


def test_a_prefix_is_named_and_stripped_when_asked_for(tmp_path):
    net = create_backbone("squeezenet", 32)
    path = tmp_path / "w.safetensors"
    save_file({f"module.backbone.{k}": v for k, v in net.state_dict().items()} | {"module.queue": torch.zeros(2)}, path)
    with pytest.raises(
        UserError, match=r"begin with 'module.backbone.'; strip that with backbone.prefix=module.backbone."
    ):
        create_backbone("squeezenet", 32, pretrained=path)
    again = create_backbone("squeezenet", 32, pretrained=path, prefix="module.backbone.")
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in net.state_dict().items())
    with pytest.raises(UserError, match=r"no name in .* begins with 'model.'; those of the backbone begin with"):
        load_weights(net, path, "model.")
    with pytest.raises(UserError, match=r"prefix is that of names in a file"):
        create_backbone("squeezenet", 32, prefix="module.")
