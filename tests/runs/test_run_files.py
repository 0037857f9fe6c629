"""Files of a run that were damaged, emptied, edited or lost: one sentence that names the file, or the run goes on."""

import json
import os
import shutil
import stat

import pytest
import torch
import yaml
from helpers.short_runs import SHORT_RUN
from safetensors.torch import load_file, save_file

import sslkit as library
from sslkit.errors import UserError
from sslkit.machine.tensors import read_tensors
from sslkit.runs.compare import table
from sslkit.runs.display import Display
from sslkit.runs.report import write
from sslkit.runs.run import Run
from sslkit.training import engine

SETTINGS = {**SHORT_RUN, "epochs": 2, "log_every": 1}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return library.run(**SETTINGS, out=tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished.path, tmp_path / "run")
    return Run.open(tmp_path / "run")


def resumed(run, **settings):
    """Go on with other settings, and return what was said."""
    config = yaml.safe_load((run.path / "config.yaml").read_text()) | settings
    (run.path / "config.yaml").write_text(yaml.safe_dump(config))
    said = []
    display = Display(quiet=True)
    display.log = said.append
    engine.resume(run.path, display)
    return "\n".join(said)


def edited(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewritten(path, change):
    """Change tensors and leave the header as it is, digest included."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    save_file({key: change(value) for key, value in load_file(path).items()}, path, header)


# --- settings ---


@pytest.mark.parametrize("keep", [0, 3, 20])
def test_an_emptied_or_cut_config_is_a_mistake_never_filled_with_defaults(run, sslkit, keep):
    config = run.path / "config.yaml"
    config.write_text("".join(config.read_text().splitlines(keepends=True)[:keep]))
    for command in ("evaluate", "resume", "compare"):
        done = sslkit(command, str(run.path))
        assert done.returncode == 2
        assert f"{config} is incomplete: " in done.stderr
        assert "out" in done.stderr


def test_no_file_is_read_because_a_run_or_a_header_names_a_recipe(run, sslkit, tmp_path):
    (tmp_path / "secret.yaml").write_text("a: *nothing")
    with (run.path / "config.yaml").open("a") as file:
        file.write(f"recipe: {tmp_path / 'secret.yaml'}\n")
    done = sslkit("evaluate", str(run.path))
    assert (done.returncode, "names a recipe" in done.stderr, "secret.yaml" in done.stderr) == (2, True, False)
    tensors, header = read_tensors(run.backbone_file)
    config = json.loads(header["config"]) | {"recipe": str(tmp_path / "secret.yaml")}
    save_file(tensors, run.backbone_file, header | {"config": json.dumps(config)})
    done = sslkit("evaluate", str(run.backbone_file))
    assert (done.returncode, "names a recipe" in done.stderr, "secret.yaml" in done.stderr) == (2, True, False)


def test_weights_without_the_settings_of_a_run_need_their_data_named(run, sslkit, tmp_path):
    tensors, header = read_tensors(run.backbone_file)
    save_file(tensors, tmp_path / "w.safetensors", header | {"config": '{"epochs": 3}'})
    done = sslkit("evaluate", "w.safetensors")
    assert (done.returncode, "add data=NAME" in done.stderr) == (2, True)


# --- digests ---


def test_state_that_was_edited_is_named_and_the_checkpoint_before_is_used(run):
    edited(run.checkpoints[-1] / "state.json", step=1)
    assert "epoch-0002 is damaged (the checksum of state.json is wrong)" in resumed(run)


def test_an_empty_table_of_checksums_is_no_proof(run):
    state = run.checkpoints[-1] / "state.json"
    found = json.loads(state.read_text())
    del found["digest"]
    state.write_text(json.dumps(found | {"sha256": {}}))
    assert "epoch-0002 is damaged (the checksum of model.safetensors is wrong)" in resumed(run)


def test_weights_with_another_sign_are_refused(run):
    rewritten(run.backbone_file, lambda value: -value if value.is_floating_point() else value)
    with pytest.raises(UserError, match="its content has changed since it was written"):
        library.load(run.backbone_file)


def test_a_header_that_was_edited_is_refused_and_files_without_a_digest_are_read(run):
    tensors, header = read_tensors(run.backbone_file)
    save_file(tensors, run.backbone_file, header)
    assert library.load(run.backbone_file).width == 512
    from sslkit.machine.tensors import write_tensors

    write_tensors(run.backbone_file, tensors, header)
    data = run.backbone_file.read_bytes()
    run.backbone_file.write_bytes(data.replace(b'"image_size":"32"', b'"image_size":"64"', 1))
    with pytest.raises(UserError, match="its content has changed"):
        library.load(run.backbone_file)


@pytest.mark.parametrize(
    ("name", "value"), [("mean", "[Infinity, 0, 0]"), ("mean", "[0, 0]"), ("std", "[1, 0, 1]"), ("width", "7")]
)
def test_a_header_that_does_not_describe_its_network_is_refused(run, name, value):
    tensors, header = read_tensors(run.backbone_file)
    save_file(tensors, run.backbone_file, header | {name: value})
    with pytest.raises(
        UserError, match=rf"backbone.safetensors has a damaged header \({name}.*fetch or write it again"
    ):
        library.load(run.backbone_file)


def test_integers_are_no_weights_but_another_precision_is(run):
    tensors, header = read_tensors(run.backbone_file)
    save_file({k: v.half() for k, v in tensors.items()}, run.backbone_file, header)
    assert next(library.load(run.backbone_file).parameters()).dtype == torch.float32
    save_file({k: v.int() for k, v in tensors.items()}, run.backbone_file, header)
    with pytest.raises(UserError, match=r"features.0.weight holds torch.int32 in place of torch.float32"):
        library.load(run.backbone_file)


def test_all_files_have_the_mode_that_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        done = library.run(**{**SETTINGS, "epochs": 1}, out=tmp_path / "run")
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in done.path.rglob("*.*") if p.is_file()}
    assert {name for name, mode in modes.items() if mode != 0o640} <= {".lock"}


# --- files that are gone or cut ---


@pytest.mark.parametrize("content", [None, "", '{"step": 1, "epoch": 0.5, "loss"', "null\n[1]\n{}\n"])
def test_lost_metrics_do_not_keep_a_run_from_going_on(run, content):
    metrics = run.path / "metrics.jsonl"
    metrics.unlink() if content is None else metrics.write_text(content)
    said = resumed(run, epochs=3)
    assert "the metrics of steps 0 to 4 are lost; the weights are not" in said
    assert [m["step"] for m in run.metrics] == [5, 6]
    assert run.metrics[-1]["seconds"] > 0


def test_records_that_the_checkpoint_does_not_know_are_dropped(run):
    shutil.rmtree(run.checkpoints[-1])
    resumed(run)
    assert [m["step"] for m in run.metrics] == [1, 2, 3, 4]
    assert [e["epoch"] for e in run.evaluations] == [0, 2]


def test_a_record_after_a_cut_line_is_whole(run):
    evaluations = run.path / "evaluations.jsonl"
    evaluations.write_text(evaluations.read_text()[:-20])
    run.log_evaluation({"epoch": 2, "evaluator": "knn", "top1": 0.5})
    assert [e["top1"] for e in run.evaluations][-1] == 0.5


DAMAGE = ["{", "null", "[]", "[" * 20_000, '"x"', '{"derived": 3, "origins": []}', "\x00\xff"]


@pytest.mark.parametrize("content", DAMAGE, ids=lambda text: repr(text[:30]))
@pytest.mark.parametrize(
    "file", ["environment.json", "metrics.jsonl", "evaluations.jsonl", "checkpoints/epoch-0002/state.json"]
)
def test_damaged_records_are_left_out_by_every_reader(run, file, content):
    (run.path / file).write_text(content, encoding="latin-1")
    assert table([run.path])[0]["epochs"] == 2
    write([run.path])
    assert run.progress.finished
    run.note(hours=1.0)
    assert run.derived["hours"] == 1.0


WRONG = {
    "environment.json": {"derived": {"hours": "x", "width": None, "gflops": []}, "origins": {"epochs": 3}},
    "metrics.jsonl": {"step": 4, "epoch": 2, "loss": "low", "seconds": "x", "feature_std": [], "effective_rank": {}},
    "evaluations.jsonl": {"evaluator": "knn", "epoch": 2, "top1": "high", "floors": 3, "notes": 1, "files": "x"},
}


@pytest.mark.parametrize("file", WRONG)
def test_fields_of_another_kind_are_left_out_by_every_reader(run, file):
    (run.path / file).write_text(json.dumps(WRONG[file]) + "\n")
    assert table([run.path])[0]["epochs"] == 2
    write([run.path])
    assert isinstance(run.verdict, list)
    resumed(run)


def test_an_execution_that_there_is_not_is_named_with_its_file(run):
    run.note(execution={"precision": "fp3"})
    with pytest.raises(UserError, match=r"environment.json is damaged \(the execution is not one"):
        resumed(run)


# --- places that cannot be written ---


def test_figures_are_printed_before_it_is_said_that_they_were_not_kept(run, sslkit):
    (run.path / "evaluations.jsonl").unlink()
    (run.path / "evaluations.jsonl").mkdir()
    done = sslkit("evaluate", str(run.path), "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)[0]["evaluator"] == "knn"
    assert "the figures were not kept: " in done.stderr
    assert "evaluations.jsonl cannot be written (is a directory)" in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_a_sentence_that_says_how_to_go_on(run):
    (run.path / "metrics.jsonl").unlink()
    (run.path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(
        UserError, match=r"metrics.jsonl cannot be written \(no space left on device\); make room there"
    ):
        run.log_metrics({"step": 1})


def test_the_caller_s_random_numbers_are_its_own(run):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    resumed(run, epochs=3)
    assert torch.equal(torch.rand(2), expected)
