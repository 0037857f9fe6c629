"""Hours, kWh and kg of CO2 equivalent of a training run, measured if possible, otherwise estimated.

The formula is that of Lacoste et al. 2019 (Quantifying the carbon emissions of machine learning, section 2):
hours × power of the hardware × grams of CO2e per kWh in the region of the electricity. No network access is made.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslkit.config.carbon import electricity_basis, emissions
from sslkit.machine import cards, units

if TYPE_CHECKING:
    import torch

    from sslkit.config.carbon import Carbon
    from sslkit.runs.run import Run

CPU_WATTS = 85.0
"""Assumed power of a CPU in watts, as codecarbon assumes for unknown CPUs (POWER_CONSTANT)."""
CARD_WATTS = 250.0
"""Assumed power in watts of a GPU that does not report its limit: Tesla P100 in Sonawane et al. 2021 (section 7)."""


@dataclass(frozen=True)
class Energy:
    """Time, energy and emissions of training, and how they were obtained."""

    hours: float
    """Wall-clock hours, including evaluations and checkpoints."""
    kwh: float
    """Energy of the hardware in kWh, without the overhead of the data centre."""
    kg_co2e: float
    """Emissions in kg of CO2 equivalent, including the overhead of the data centre (PUE)."""
    basis: str
    """Description of the measurement or estimate with all of its assumptions."""


def estimate(hours: float, device: "torch.device", carbon: "Carbon", processes: int = 1) -> Energy:
    """Estimate the energy of `hours` at full power: an upper bound for the device, ignoring the rest of the machine."""
    watts, source = power(device, carbon.tdp)
    cards = processes if device.type == "cuda" else 1
    kwh = hours * watts * cards / 1000
    times = f"{cards} × " if cards > 1 else ""
    basis = f"estimated: constant {times}{watts:g} W ({source}), nothing else counted"
    return Energy(hours, kwh, emissions(kwh, carbon), f"{basis}; {electricity_basis(carbon)}")


def power(device: "torch.device", tdp: float | None = None) -> tuple[float, str]:
    """Return (watts, description of their source) of one device; `tdp` overrides what can be detected."""
    if tdp is not None:
        return tdp, "carbon.tdp"
    if device.type != "cuda":
        return CPU_WATTS, "assumed for the CPU; set carbon.tdp= if known"
    if (limit := cards.power_limit(device)) is not None:
        return limit, "the GPU's own limit"
    return CARD_WATTS, "assumed for the GPU; set carbon.tdp= if known"


@contextmanager
def recorded(run: "Run", device: "torch.device") -> Iterator[None]:
    """Add the costs of the block to the run's derived values: hours, kwh, kg_co2e, energy_basis, peak_memory_gib.

    They are added also if the block raises. All processes enter the block; the first one writes for all of them.
    """
    from sslkit.machine import distributed
    from sslkit.machine.memory import peak_memory

    if not distributed.is_main():
        yield
        return
    carbon, processes = run.config.carbon, distributed.world()
    before = _spent_before(run, device, processes)
    tracker = _started_tracker(device, processes)
    began = time.monotonic()
    try:
        yield
    finally:
        hours = (time.monotonic() - began) / 3600
        spent = _read(tracker, hours, device, carbon) if tracker else estimate(hours, device, carbon, processes)
        kwh = before.kwh + spent.kwh
        run.note(
            hours=before.hours + hours,
            kwh=kwh,
            kg_co2e=emissions(kwh, carbon),
            energy_basis=spent.basis,
            peak_memory_gib=max(run.derived.get("peak_memory_gib", 0.0), peak_memory(device)),
        )


def in_words(derived: dict[str, Any]) -> str:
    """Return the costs in a run's derived values as one line, which a run logs at its end."""
    hours, kwh, kg = (derived[name] for name in ("hours", "kwh", "kg_co2e"))
    return f"{units.duration(3600 * hours)}, {units.energy(kwh)}, {units.emissions(kg)} ({derived['energy_basis']})"


def _spent_before(run: "Run", device: "torch.device", processes: int) -> Energy:
    """Return the energy of earlier sessions of a resumed run; sessions that were killed are estimated."""
    noted = run.derived
    metrics = run.metrics
    trained = metrics[-1].get("seconds", 0.0) / 3600 if metrics else 0.0
    lost = max(0.0, trained - noted.get("hours", 0.0))
    kwh = noted.get("kwh", 0.0) + estimate(lost, device, run.config.carbon, processes).kwh
    return Energy(noted.get("hours", 0.0) + lost, kwh, emissions(kwh, run.config.carbon), "")


def _started_tracker(device: "torch.device", processes: int) -> Any:
    """Return a started codecarbon tracker if codecarbon is installed and can measure this device; otherwise None."""
    if find_spec("codecarbon") is None or not _can_measure(device):
        return None
    from codecarbon import OfflineEmissionsTracker

    # The country only affects codecarbon's own emissions, which are not used.
    tracker = OfflineEmissionsTracker(
        country_iso_code="USA",
        gpu_ids=_cards(device, processes),
        pue=1.0,
        output_methods=[],
        log_level="error",
        allow_multiple_runs=True,
    )
    tracker.start()
    return tracker


def _can_measure(device: "torch.device") -> bool:
    if device.type == "cuda":
        return cards.power_draw(device) is not None
    counters = Path("/sys/class/powercap").glob("*rapl*/energy_uj")
    return device.type == "cpu" and any(os.access(counter, os.R_OK) for counter in counters)


def _read(tracker: Any, hours: float, device: "torch.device", carbon: "Carbon") -> Energy:
    tracker.stop()
    found = tracker.final_emissions_data
    kwh = found.cpu_energy + found.ram_energy
    counted = "CPU (RAPL) and memory"
    if device.type == "cuda":
        kwh += found.gpu_energy
        counted = "GPU (NVML), CPU and memory"
    return Energy(hours, kwh, emissions(kwh, carbon), f"measured by codecarbon: {counted}; {electricity_basis(carbon)}")


def _cards(device: "torch.device", processes: int) -> list[str] | None:
    """Return the UUIDs of the GPUs that train: the first ones with several processes, else this one; None on a CPU."""
    import torch

    if device.type != "cuda":
        return None
    return [cards.uuid(torch.device("cuda", n)) for n in range(processes)] if processes > 1 else [cards.uuid(device)]
