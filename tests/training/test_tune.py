"""What `tune=auto` chooses, what it leaves alone and what it remembers."""

import json
import weakref
from dataclasses import asdict, replace

import pytest
import torch
from helpers.executions import CUDA, FIRST, HALF, SETTINGS, USUAL, built, stepped

from sslkit.config.resolve import resolve
from sslkit.training import engine, execution, tune
from sslkit.training.execution import Execution
from sslkit.training.setup import TrainingSetup
from sslkit.training.tune import candidates, choose, in_words, timings, trials
from sslkit.training.tune.timings import Timing, TuningRecord
from sslkit.training.tune.trials import Trial


def timing(candidate: Execution, step: float, first: float | None = None, loss: float = 2.0, error: str = "") -> Timing:
    return Timing(candidate, step if first is None else first, step, loss, 2.0, error)


@pytest.fixture
def tuning(monkeypatch, tmp_path):
    """Short runs are tuned too, with nothing remembered, and bf16 is open; gives the candidates measured so far."""
    monkeypatch.setattr(tune, "FEWEST_STEPS", 1)
    monkeypatch.setattr(trials, "TIMED_STEPS", 1)
    monkeypatch.setattr(candidates, "has_bf16", lambda device: True)
    monkeypatch.setenv("SSLKIT_CACHE", str(tmp_path / "cache"))
    measured: list[list[Execution]] = []
    measure = trials.measure

    def counted(setup, candidates, log):
        measured.append(candidates)
        return measure(setup, candidates, log)

    monkeypatch.setattr(trials, "measure", counted)
    return measured


@pytest.fixture
def seconds(monkeypatch):
    """Settles the seconds of a step of each candidate, and of the first one; the steps themselves are taken."""
    settled: dict[Execution, tuple[float, float]] = {}
    timed = Trial._timed

    def settled_seconds(trial, image_batches):
        first, step = settled.get(trial.candidate, (1.0, 1.0))
        return step if trial.first else first, timed(trial, image_batches)[1]

    monkeypatch.setattr(Trial, "_timed", settled_seconds)
    return settled


@pytest.fixture
def compiles(monkeypatch):
    """Records how networks are compiled, instead of compiling them."""
    calls: list[dict] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: calls.append(how))
    return calls


# --- choosing ---


def test_a_dear_first_step_is_worth_it_in_a_long_run_alone():
    compiled = Execution(compile="default")
    candidates = [timing(USUAL, 1.0), timing(compiled, 0.5, first=60)]
    assert choose(candidates, 100) == USUAL, "60 + 99 × 0.5 is more than 100"
    assert choose(candidates, 1000) == compiled


@pytest.mark.parametrize(("candidate", "enough", "too_little"), [(FIRST, 0.96, 0.98), (HALF, 0.89, 0.91)])
def test_a_candidate_must_be_clearly_faster_and_fewer_digits_by_a_tenth(candidate, enough, too_little):
    assert choose([timing(USUAL, 1.0), timing(candidate, enough)], 1000) == candidate
    assert choose([timing(USUAL, 1.0), timing(candidate, too_little)], 1000) == USUAL


def test_more_digits_than_the_usual_candidate_need_no_tenth():
    assert choose([timing(HALF, 1.0), timing(USUAL, 0.96)], 1000) == USUAL


def test_the_fastest_is_taken_and_the_usual_one_where_nothing_is_faster():
    assert choose([timing(USUAL, 1.0), timing(FIRST, 0.8), timing(HALF, 0.7)], 1000) == HALF
    assert choose([timing(USUAL, 1.0), timing(FIRST, 1.0), timing(HALF, 1.5)], 1000) == USUAL
    assert choose([timing(USUAL, 1.0)], 1000) == USUAL


@pytest.mark.parametrize("loss", [2.1, 1.9, float("nan"), float("inf")])
def test_a_candidate_with_another_loss_is_no_choice(loss):
    candidates = [timing(USUAL, 1.0), timing(FIRST, 0.1, loss=loss)]
    assert choose(candidates, 1000) == USUAL
    assert "but its loss is" in list(in_words(candidates, USUAL, 8))[2]


def test_bf16_may_differ_by_its_own_rounding():
    assert choose([timing(USUAL, 1.0), timing(HALF, 0.1, loss=2.05)], 1000) == HALF
    assert choose([timing(HALF, 1.0), timing(USUAL, 0.1, loss=2.05)], 1000) == USUAL
    assert choose([timing(USUAL, 1.0), timing(HALF, 0.1, loss=2.2)], 1000) == USUAL


def test_a_candidate_that_failed_is_no_choice_unless_all_did():
    failed = timing(USUAL, 0.0, error="out of memory")
    assert choose([timing(USUAL, 1.0), replace(failed, execution=FIRST)], 1000) == USUAL
    assert choose([failed, timing(FIRST, 1.0)], 1000) == FIRST
    assert choose([failed, replace(failed, execution=FIRST)], 1000) == USUAL, "the run itself will tell why"


# --- a run that is tuned ---


def test_tuning_leaves_the_run_as_it_was(tuning, seconds):
    said: list[str] = []
    torch.manual_seed(3)
    tuned = built(log=said.append)
    state = torch.get_rng_state()
    assert len(tuning[0]) == 4
    torch.manual_seed(3)
    plain = built("tune=off")
    assert torch.equal(state, torch.get_rng_state())
    assert tuned.execution == plain.execution == USUAL, "all candidates took the same time"
    assert not tuned.optimizer.state
    for name, tensor in plain.method.state_dict().items():
        torch.testing.assert_close(tuned.method.state_dict()[name], tensor, rtol=0, atol=0)
    assert all(p.grad is None for p in tuned.method.parameters())
    assert stepped(tuned, 3) == stepped(plain, 3)


def test_the_table_is_logged_and_the_fastest_is_taken(tuning, seconds):
    seconds[FIRST], seconds[HALF] = (0.5, 0.5), (0.8, 0.8)
    said: list[str] = []
    setup = built(log=said.append)
    assert setup.execution == FIRST
    table = said[said.index("tuned by timing a few real steps of each candidate (tune=off disables this):") + 1 :]
    assert [line.split(",")[0].strip() for line in table] == ["fp32", "bf16", "bf16", "fp32"]
    assert "500.0 ms/step,     16 images/s  <- chosen" in table[3]
    assert sum("chosen" in line for line in table) == 1
    stepped(setup)


def test_a_second_run_measures_nothing_and_chooses_the_same(tuning, seconds):
    seconds[FIRST] = (0.5, 0.5)
    chosen, said = built().execution, []
    assert built("seed=5", "epochs=9", log=said.append).execution == chosen == FIRST
    assert len(tuning) == 1
    assert any("chosen" in line for line in said)
    assert built("batch_size=16").execution == FIRST
    assert len(tuning) == 2, "another batch, other times"


def test_what_another_seed_measured_is_not_compared_with_this_one(tuning, seconds):
    seconds[FIRST] = (0.5, 0.5)
    built("precision=fp32", "channels_last=true", "seed=1", "tune=auto", "compile=false")
    assert not tuning, "nothing is open"
    built("channels_last=true", "seed=1")
    assert built("seed=2").execution == FIRST
    assert [len(candidates) for candidates in tuning] == [3, 4]


def test_a_damaged_memory_is_measured_anew(tuning, seconds, tmp_path):
    built()
    [file] = (tmp_path / "cache/tune").glob("*.json")
    whole = json.loads(file.read_text())
    assert whole["about"]["batch_size"] == 8
    file.write_text("{")
    assert built().execution == USUAL
    assert len(tuning) == 2
    assert json.loads(file.read_text())["about"] == whole["about"]


def test_views_are_tried_once_and_only_where_compiling_is_open(tuning, seconds, monkeypatch):
    tried: list[int] = []
    monkeypatch.setattr(tune.compiled_views, "_can_be_compiled", lambda setup: setup.config.compile is not False)
    monkeypatch.setattr(tune.compiled_views, "try_compiled", lambda views, images: tried.append(len(images)) or answer)
    words = ["precision=fp32", "channels_last=true", "compile=true", "micro_batch=4"]
    answer = True, "faster"
    assert not built(*words).execution.compiled_views
    assert not tried, "a few steps gain nothing by it"
    monkeypatch.setattr(tune.compiled_views, "COMPILING_PAYS", 0.0)
    answer = None, "out of memory"
    assert not built(*words).execution.compiled_views
    answer = True, "faster"
    setup = built(*words)
    assert setup.execution.compiled_views
    assert setup.augmentation._compiled is not None
    assert built(*words).execution.compiled_views
    assert not built(*words[:2], "compile=false", "micro_batch=4").execution.compiled_views
    assert tried == [4, 4], "as many images as a step makes views of, until the answer is known"
    monkeypatch.setattr(tune.compiled_views, "COMPILING_PAYS", 120.0)
    assert not built(*words).execution.compiled_views, "what a longer run found does not make this one longer"


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"timings": [{"execution": {"speed": 3}}]}', '{"timings": [7]}'])
def test_no_timings_are_recalled_from_a_damaged_file(tmp_path, damage):
    (tmp_path / "damaged.json").write_text(damage)
    assert timings.recall(tmp_path / "damaged.json") == TuningRecord()
    assert timings.recall(tmp_path / "missing.json") == TuningRecord()


def test_off_and_short_runs_time_nothing(tuning, monkeypatch):
    said: list[str] = []
    built("tune=off", log=said.append)
    monkeypatch.setattr(tune, "FEWEST_STEPS", 300)
    built(log=said.append)
    assert not tuning
    assert not any("tuned" in line for line in said)
    built("tune=always", "compile=false", log=said.append)
    assert len(tuning) == 1
    assert any("tuned" in line for line in said)


def test_a_candidate_that_fails_is_reported_and_not_taken(tuning, seconds, monkeypatch):
    seconds[HALF] = (0.1, 0.1)
    step = trials.train_step

    def failing(setup, image_batches, number):
        if setup.execution == HALF:
            raise RuntimeError("no kernel\n  for this")
        return step(setup, image_batches, number)

    monkeypatch.setattr(trials, "train_step", failing)
    said: list[str] = []
    assert built(log=said.append).execution == USUAL
    assert any("not possible here: no kernel for this" in line for line in said)
    assert built().execution == USUAL
    assert len(tuning) == 1, "that it failed is remembered"


def test_what_ran_out_of_memory_is_tried_again_another_day(tuning, seconds, monkeypatch):
    step = trials.train_step

    def failing(setup, image_batches, number):
        if setup.execution == HALF:
            raise torch.OutOfMemoryError("another program has the memory")
        return step(setup, image_batches, number)

    monkeypatch.setattr(trials, "train_step", failing)
    assert built().execution == USUAL
    monkeypatch.setattr(trials, "train_step", step)
    seconds[HALF] = (0.1, 0.1)
    assert built().execution == HALF


def test_the_copies_are_gone_when_the_run_begins(tuning, monkeypatch):
    copies = []
    copied = Trial._copied

    def noting(trial, setup):
        made = copied(trial, setup)
        copies.append(weakref.ref(made.method))
        if trial.candidate == HALF:
            raise RuntimeError("no kernel for this")
        return made

    monkeypatch.setattr(Trial, "_copied", noting)
    built()
    assert len(copies) == 5
    assert not [copy for copy in copies if copy()]


def test_a_cache_that_cannot_be_written_costs_the_memory_alone(tuning, seconds, monkeypatch):
    seconds[FIRST] = (0.5, 0.5)

    def read_only(path, value):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(timings.atomic, "write_json", read_only)
    said: list[str] = []
    assert built(log=said.append).execution == FIRST
    assert any("cannot be saved for later runs" in line and "Permission denied" in line for line in said)


def test_a_candidate_that_cannot_even_be_set_up_does_not_stop_the_run(tuning, seconds, monkeypatch):
    apply = Execution.apply

    def failing(candidate, method):
        if candidate == FIRST:
            raise torch.cuda.OutOfMemoryError("out of memory")
        apply(candidate, method)

    monkeypatch.setattr(Execution, "apply", failing)
    assert built().execution == USUAL


def test_compiling_is_tried_where_the_run_is_long_enough(tuning, seconds, compiles, monkeypatch):
    said: list[str] = []
    seconds[FIRST] = (0.5, 0.5)
    compiled = replace(FIRST, compile="default")
    seconds[compiled] = (60.0, 0.1)
    assert built(log=said.append).execution == FIRST
    assert not compiles
    monkeypatch.setattr(tune, "COMPILING_PAYS", 1.0)
    assert built(log=said.append).execution == FIRST, "tried, and too dear for 12 steps"
    assert tuning[-1] == [FIRST, compiled]
    assert compiles == [{"mode": None, "dynamic": False}]
    assert any("some of them compiled, which takes a minute or two" in line for line in said)
    assert any("60 s to compile" in line for line in said)
    before = len(tuning)
    assert built("epochs=100").execution == compiled
    assert len(tuning) == before, "what was measured serves runs of any length"


def test_what_is_to_be_compiled_is_chosen_uncompiled(tuning, seconds, compiles):
    seconds[FIRST] = (0.5, 0.5)
    setup = built("compile=true")
    assert setup.execution == replace(FIRST, compile="default")
    assert {candidate.compile for candidate in tuning[0]} == {"no"}
    assert len(compiles) == 1
    assert timings.images_per_second(setup) == 16, "as fast as uncompiled at least, for all that is known"


def test_always_judges_as_for_a_long_run(seconds, compiles, monkeypatch, tmp_path):
    monkeypatch.setenv("SSLKIT_CACHE", str(tmp_path))
    compiled = replace(USUAL, compile="default")
    seconds[compiled] = (60.0, 0.5)
    words = ["precision=fp32", "channels_last=true"]
    assert built(*words).execution == USUAL
    assert built(*words, "tune=always").execution == compiled


def test_what_is_timed_another_day_is_compared_at_the_pace_of_the_first(tuning, seconds, compiles, monkeypatch):
    words = ["precision=fp32", "channels_last=true"]
    known = trials.measure(built("tune=off", *words), [USUAL], print)
    compiled = replace(USUAL, compile="default")
    seconds[USUAL], seconds[compiled] = (2.0, 2.0), (60.0, 1.8)
    fresh = trials.measure(built("tune=off", *words), [USUAL, compiled], print)
    together = tune._rescaled(known, USUAL, fresh)
    assert together[USUAL].step == 1.0
    assert together[compiled].step == pytest.approx(0.9)


def test_the_momentum_encoder_is_compiled_too(compiles):
    setup = built("method=byol", "tune=off", "compile=true")
    assert setup.execution.compile == "default"
    assert len(compiles) == 2


# --- a run goes on as it began ---


def test_resume_keeps_what_was_chosen(tmp_path, monkeypatch):
    out = tmp_path / "run"
    run = engine.run(resolve([*(f"{key}={value}" for key, value in SETTINGS.items()), f"out={out}"]))
    assert run.derived["execution"] == asdict(USUAL)
    file = out / "environment.json"
    noted = json.loads(file.read_text())
    noted["derived"]["execution"]["channels_last"] = False
    file.write_text(json.dumps(noted))
    kept: list[TrainingSetup] = []
    monkeypatch.setattr(engine, "train", lambda run, setup, *rest: kept.append(setup))
    monkeypatch.setattr("sslkit.training.build.tune", None)
    engine.resume(out)
    assert kept[0].execution == FIRST


def test_resume_compiles_the_views_if_they_were_and_times_nothing(tmp_path, monkeypatch):
    out = tmp_path / "run"
    engine.run(resolve([*(f"{key}={value}" for key, value in SETTINGS.items()), f"out={out}"]))
    file = out / "environment.json"
    noted = json.loads(file.read_text())
    noted["derived"]["execution"] |= {"compiled_views": True, "compile": "graphs"}
    monkeypatch.setattr("sslkit.training.build.possible_here", lambda candidate, device: candidate)
    file.write_text(json.dumps(noted))
    kept: list[TrainingSetup] = []
    monkeypatch.setattr(engine, "train", lambda run, setup, *rest: kept.append(setup))
    monkeypatch.setattr(tune.compiled_views, "try_compiled", None)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: None)
    engine.resume(out)
    assert kept[0].augmentation._compiled is not None
    assert kept[0].execution.compile == "graphs"
    monkeypatch.setattr(execution.distributed, "world", lambda: 2)
    assert execution.possible_here(kept[0].execution, CUDA).compile == "default", "several processes cannot replay"
