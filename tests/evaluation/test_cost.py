"""What a backbone costs to use, against counts by hand and published ones; what a run costs, by Lacoste's formula."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from sslkit.backbones import create_backbone, save_backbone
from sslkit.backbones.flops import flops
from sslkit.config import carbon
from sslkit.config.carbon import Carbon
from sslkit.evaluation.evaluators.cost import Cost, megabytes, timings
from sslkit.machine import devices
from sslkit.runs import energy
from sslkit.testing import TinyBackbone

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
FAST = {"batch_sizes": (1, 4), "repeats": 3, "warmup": 1}


class Fixed(nn.Module):
    """Takes images of 32 px alone, each in no less than 10 ms."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3 * 32 * 32, 5)

    def forward(self, images):
        time.sleep(0.01)
        return self.linear(images.flatten(1))


def subject(net, size=32, **more):
    return SimpleNamespace(backbone=net, image_size=size, device=CPU, **more)


# --- the evaluator ---


def test_flops_are_those_counted_by_hand():
    """A convolution makes C_in × k² multiply-adds for each number it gives; batch norm and ReLU none."""
    by_hand = 2 * (8 * 8 * 8 * 3 * 9 + 3 * 3 * 16 * 8 * 9)
    assert flops(TinyBackbone(), 32) == by_hand
    assert flops(Fixed(), 32) == 2 * 3 * 32 * 32 * 5


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("resnet18", 1.8e9),  # Sonawane et al. 2021, Table 1; He et al. 2016, Table 1
        ("mobilenetv2", 3.0e8),  # Sandler et al. 2018, Table 4
        ("shufflenetv2", 1.46e8),  # Ma et al. 2018, Table 8
    ],
)
def test_multiply_adds_at_224_are_the_published_ones(name, published):
    assert flops(create_backbone(name, 224), 224) / 2 == pytest.approx(published, rel=0.02)


def test_counting_leaves_the_network_and_the_random_numbers_as_they_were():
    net = TinyBackbone()
    net[1].eval()
    modes = [module.training for module in net.modules()]
    state, random = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    Cost(Cost.Config(**FAST))(subject(net))
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(state[k], v) for k, v in net.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())


def test_figures_and_protocol():
    evaluator = Cost(Cost.Config(**FAST))
    figures = evaluator(subject(TinyBackbone()))
    assert figures["parameters"] == sum(p.numel() for p in TinyBackbone().parameters())
    assert figures["gflops"] == 2 * figures["gmacs"] == flops(TinyBackbone(), 32) / 1e9
    assert figures["gflops_224"] == 2 * figures["gmacs_224"] == flops(TinyBackbone(), 224) / 1e9
    for n in (1, 4):
        assert figures[f"images_per_second_{n}"] == pytest.approx(n * 1000 / figures[f"latency_ms_{n}"])
    assert "median of 3 passes of 1, 3 passes of 4 at 32 px" in evaluator.protocol
    varying = {name for name in figures if name.startswith(Cost.varies)}
    assert varying == {"latency_ms_1", "latency_ms_4", "images_per_second_1", "images_per_second_4"}


def test_latency_is_that_of_a_pass_and_a_size_that_does_not_fit_is_left_out():
    figures = Cost(Cost.Config(**FAST))(subject(Fixed()))
    assert 10 < figures["latency_ms_1"] < 100
    assert "gflops" in figures
    assert "gflops_224" not in figures


def test_a_slow_network_is_timed_less_often_though_three_times():
    calls = []

    def once():
        calls.append(time.sleep(0.02))

    assert len(timings(once, CPU, warmup=5, repeats=100, seconds=0.01)) == 3
    assert len(calls) == 1 + 3
    assert len(timings(once, CPU, warmup=2, repeats=4, seconds=9)) == 4
    assert min(timings(once, CPU, warmup=1, repeats=2, seconds=9)) >= 0.02


def test_megabytes_are_those_of_the_weights_file(tmp_path):
    net = create_backbone("shufflenetv2", 32)
    save_backbone(net, tmp_path / "b.safetensors", name="shufflenetv2", image_size=32, mean=(0, 0, 0), std=(1, 1, 1))
    assert megabytes(net) == pytest.approx((tmp_path / "b.safetensors").stat().st_size / 1e6, rel=0.02)


def test_autocast_is_that_of_the_subject(monkeypatch):
    seen = []
    net = TinyBackbone()
    net.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    Cost(Cost.Config(**FAST))(subject(net, autocast=torch.bfloat16))
    assert seen.count(torch.bfloat16) == 2 * (1 + 3)


def test_the_device_is_waited_for(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    devices.synchronize(torch.device("cuda:1"))
    devices.synchronize(CPU)
    assert waited == [torch.device("cuda:1")], "the device itself, whichever is the current one"


# --- energy ---


def test_the_formula_is_that_of_lacoste_with_sonawane_s_hardware():
    """250 h of a P100 of 250 W at 0.42 kg/kWh are 26.25 kg (their section 7 says 35, without a PUE)."""
    spent = energy.estimate(250, CPU, Carbon(region="asia-southeast1", tdp=250))
    assert spent.kwh == pytest.approx(62.5)
    assert spent.kg_co2e == pytest.approx(26.25)
    for assumption in ("250 W (carbon.tdp)", "420 g CO2e/kWh (asia-southeast1)", "PUE 1"):
        assert assumption in spent.basis


def test_every_setting_counts():
    plain = energy.estimate(2, CPU, Carbon())
    assert plain.kwh == 2 * energy.CPU_WATTS / 1000
    assert plain.kg_co2e == pytest.approx(plain.kwh * 0.475)
    assert energy.estimate(2, CPU, Carbon(pue=1.5)).kg_co2e == pytest.approx(1.5 * plain.kg_co2e)
    assert energy.estimate(2, CPU, Carbon(pue=1.5)).kwh == plain.kwh
    assert energy.estimate(2, CPU, Carbon(intensity=0)).kg_co2e == 0
    assert energy.estimate(2, CPU, Carbon(region="fra")).kg_co2e == pytest.approx(plain.kwh * 0.056039)
    assert energy.estimate(2, CPU, Carbon(), processes=4).kwh == plain.kwh, "processes share one processor"


@pytest.mark.parametrize(("limit", "watts"), [(700.0, 700), (None, 250)])
def test_a_card_tells_its_limit_itself_or_one_is_assumed(monkeypatch, limit, watts):
    monkeypatch.setattr(energy.cards, "power_limit", lambda device: limit)
    assert energy.power(CUDA)[0] == watts
    assert energy.power(CUDA, 90) == (90, "carbon.tdp")
    assert energy.estimate(1, CUDA, Carbon(), processes=2).kwh == 2 * watts / 1000


def test_an_unknown_region_is_a_mistake_that_names_the_closest():
    with pytest.raises(ValidationError, match="did you mean 'FRA'"):
        Carbon(region="FRE")
    assert Carbon(region="nor").region == "nor"


def test_the_shipped_table_is_codecarbon_s():
    file = Path(pytest.importorskip("codecarbon").__file__).parent / "data/private_infra"
    countries = json.loads((file / "global_energy_mix.json").read_text())
    sources = json.loads((file / "carbon_intensity_per_source.json").read_text())
    assert carbon.REGIONS["world"] == sources["world_average"]
    for code in carbon.REGIONS.keys() - {"world", "asia-southeast1"}:
        assert carbon.REGIONS[code] == countries[code]["carbon_intensity"]
    assert carbon.intensity_of("ISL") == countries["ISL"]["carbon_intensity"]


class FakeRun:
    """What `recorded` needs of a run."""

    def __init__(self, seconds=None, derived=None, **carbon):
        self.config = SimpleNamespace(carbon=Carbon(**carbon))
        self.derived = derived or {}
        self.metrics = [] if seconds is None else [{"seconds": seconds}]

    def note(self, **values):
        self.derived |= values


@pytest.fixture
def clock(monkeypatch):
    """Time that passes on request; no codecarbon."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(energy.time, "monotonic", lambda: now.seconds)
    monkeypatch.setattr(energy, "_started_tracker", lambda device, processes: None)
    return now


def test_sessions_add_up_and_one_that_fails_counts(clock):
    run = FakeRun(tdp=100)

    def interrupted():
        with energy.recorded(run, CPU):
            clock.seconds += 3600
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with energy.recorded(run, CPU):
        clock.seconds += 1800
    assert run.derived["hours"] == pytest.approx(1.5)
    assert run.derived["kwh"] == pytest.approx(0.15)
    assert run.derived["kg_co2e"] == pytest.approx(0.15 * 0.475)
    assert run.derived["peak_memory_gib"] > 0
    assert energy.in_words(run.derived).startswith("1 h 30 min, 150 Wh, 71.3 g CO2e (estimated: ")


def test_a_session_that_was_killed_counts_by_what_it_trained(clock):
    run = FakeRun(seconds=7200, derived={"hours": 0.5, "kwh": 0.5}, tdp=100)
    with energy.recorded(run, CPU):
        clock.seconds += 3600
    assert run.derived["hours"] == pytest.approx(2 + 1)
    assert run.derived["kwh"] == pytest.approx(0.5 + 1.5 * 0.1 + 0.1)


@pytest.mark.parametrize(("device", "kwh"), [(CPU, 0.03), (CUDA, 0.13)])
def test_measured_energy_goes_before_an_estimate(clock, monkeypatch, device, kwh):
    found = SimpleNamespace(cpu_energy=0.02, ram_energy=0.01, gpu_energy=0.1)
    gauge = SimpleNamespace(stop=lambda: None, final_emissions_data=found)
    monkeypatch.setattr(energy, "_started_tracker", lambda device, processes: gauge)
    monkeypatch.setattr("sslkit.machine.memory.peak_memory", lambda device: 2.0)
    run = FakeRun(intensity=1000, pue=2)
    with energy.recorded(run, device):
        clock.seconds += 3600
    assert run.derived["kwh"] == pytest.approx(kwh)
    assert run.derived["kg_co2e"] == pytest.approx(2 * kwh)
    assert run.derived["energy_basis"].startswith("measured by codecarbon")


def test_codecarbon_measures(monkeypatch, tmp_path):
    pytest.importorskip("codecarbon")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(energy, "_can_measure", lambda device: True)
    run = FakeRun()
    with energy.recorded(run, CPU):
        time.sleep(1.2)
    assert 0 < run.derived["kwh"] < 0.01
    assert run.derived["energy_basis"].startswith("measured by codecarbon: processor")
    assert list(tmp_path.iterdir()) == [], "it writes nothing of its own"
