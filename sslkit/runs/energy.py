"""What a training run costs: hours, kWh and kg of CO2 equivalent, measured where that can be, else worked out.

The formula is that of Lacoste et al. 2019 (Quantifying the carbon emissions of machine learning, section 2):
hours × power of the hardware × grams of CO2e a kWh where the electricity is made. Nothing goes over the network.
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
from sslkit.machine import cards

if TYPE_CHECKING:
    import torch

    from sslkit.config.carbon import Carbon
    from sslkit.runs.run import Run

CPU_WATTS = 85.0
"""What codecarbon too assumes of a processor that it does not know (POWER_CONSTANT)."""
CARD_WATTS = 250.0
"""A card that does not tell its limit: the Tesla P100 of Sonawane et al. 2021 (section 7)."""


@dataclass(frozen=True)
class Energy:
    """What some hours of training took, and how that is known."""

    hours: float
    """Wall-clock time, evaluations and checkpoints included."""
    kwh: float
    """Energy of the hardware, without the building around it."""
    kg_co2e: float
    """Of that energy and, by the PUE, of the building's."""
    basis: str
    """Every assumption in words."""


def estimate(hours: float, device: "torch.device", carbon: "Carbon", processes: int = 1) -> Energy:
    """Hours at full power: an upper bound for the device, with nothing for the rest of the machine."""
    watts, whose = power(device, carbon.tdp)
    cards = processes if device.type == "cuda" else 1
    kwh = hours * watts * cards / 1000
    times = f"{cards} × " if cards > 1 else ""
    basis = f"estimated: the whole time at {times}{watts:g} W ({whose}), nothing else counted"
    return Energy(hours, kwh, emissions(kwh, carbon), f"{basis}; {electricity_basis(carbon)}")


def power(device: "torch.device", tdp: float | None = None) -> tuple[float, str]:
    """(watts, where they are from in words) of one device; `tdp` goes before what is found out."""
    if tdp is not None:
        return tdp, "carbon.tdp"
    if device.type != "cuda":
        return CPU_WATTS, "assumed of the processor; carbon.tdp= says better"
    if (limit := cards.power_limit(device)) is not None:
        return limit, "the card's own limit"
    return CARD_WATTS, "assumed of the card; carbon.tdp= says better"


@contextmanager
def recorded(run: "Run", device: "torch.device") -> Iterator[None]:
    """What happens in here is added to the run's derived values: hours, kwh, kg_co2e, energy_basis, peak_memory_gib.

    However it ends. In each of several processes, of which the first one writes for all.
    """
    from sslkit.machine import distributed
    from sslkit.machine.memory import peak_memory

    if not distributed.is_main():
        yield
        return
    carbon, processes = run.config.carbon, distributed.world()
    before = _spent_before(run, device, processes)
    gauge = _gauge(device, processes)
    began = time.monotonic()
    try:
        yield
    finally:
        hours = (time.monotonic() - began) / 3600
        spent = _read(gauge, hours, device, carbon) if gauge else estimate(hours, device, carbon, processes)
        kwh = before.kwh + spent.kwh
        run.note(
            hours=before.hours + hours,
            kwh=kwh,
            kg_co2e=emissions(kwh, carbon),
            energy_basis=spent.basis,
            peak_memory_gib=max(run.derived.get("peak_memory_gib", 0.0), peak_memory(device)),
        )


def in_words(derived: dict[str, Any]) -> str:
    """The line a run ends with, of its derived values."""
    hours, kwh, kg = (derived[name] for name in ("hours", "kwh", "kg_co2e"))
    return f"{hours:.3g} h, {kwh:.3g} kWh, {kg:.3g} kg CO2e ({derived['energy_basis']})"


def _spent_before(run: "Run", device: "torch.device", processes: int) -> Energy:
    """By the sessions that a resumed run goes on from; one that was killed noted nothing, so it is estimated."""
    noted = run.derived
    metrics = run.metrics
    trained = metrics[-1]["seconds"] / 3600 if metrics else 0.0
    lost = max(0.0, trained - noted.get("hours", 0.0))
    kwh = noted.get("kwh", 0.0) + estimate(lost, device, run.config.carbon, processes).kwh
    return Energy(noted.get("hours", 0.0) + lost, kwh, emissions(kwh, run.config.carbon), "")


def _gauge(device: "torch.device", processes: int) -> Any:
    """A started codecarbon tracker, where it is installed and can measure this device; else None."""
    if find_spec("codecarbon") is None or not _can_measure(device):
        return None
    from codecarbon import OfflineEmissionsTracker

    # The country decides its emissions alone, which nobody reads; its figures go nowhere.
    gauge = OfflineEmissionsTracker(
        country_iso_code="USA",
        gpu_ids=_cards(device, processes),
        pue=1.0,
        output_methods=[],
        log_level="error",
        allow_multiple_runs=True,
    )
    gauge.start()
    return gauge


def _can_measure(device: "torch.device") -> bool:
    if device.type == "cuda":
        return cards.power_draw(device) is not None
    counters = Path("/sys/class/powercap").glob("*rapl*/energy_uj")
    return device.type == "cpu" and any(os.access(counter, os.R_OK) for counter in counters)


def _read(gauge: Any, hours: float, device: "torch.device", carbon: "Carbon") -> Energy:
    gauge.stop()
    found = gauge.final_emissions_data
    kwh = found.cpu_energy + found.ram_energy
    how = "processor (RAPL) and memory"
    if device.type == "cuda":
        kwh += found.gpu_energy
        how = "card (NVML), processor and memory"
    return Energy(hours, kwh, emissions(kwh, carbon), f"measured by codecarbon: {how}; {electricity_basis(carbon)}")


def _cards(device: "torch.device", processes: int) -> list[str] | None:
    """The cards that train: this one, or with several processes the first so many; None on a processor."""
    import torch

    if device.type != "cuda":
        return None
    return [cards.uuid(torch.device("cuda", n)) for n in range(processes)] if processes > 1 else [cards.uuid(device)]
