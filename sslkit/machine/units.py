"""Quantities in words: three digits, in the unit that fits."""

from collections.abc import Sequence

BYTES = ("bytes", "kB", "MB", "GB", "TB")
"""Powers of 1000, as disks are sold."""


def scaled(value: float, units: Sequence[str]) -> str:
    """Return a value given in the first unit with three digits, in the unit that fits; each is 1000 of the one before.

    scaled(5.4e9, BYTES) is "5.4 GB".
    """
    for unit in units[:-1]:
        if abs(value) < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} {units[-1]}"


def energy(kwh: float) -> str:
    """Return an energy: 65.6 mWh, 310 Wh, 2.1 kWh."""
    return scaled(1e6 * kwh, ("mWh", "Wh", "kWh", "MWh"))


def emissions(kg: float) -> str:
    """Return emissions of greenhouse gases: 31.2 mg CO2e, 150 g CO2e."""
    return f"{scaled(1e6 * kg, ('mg', 'g', 'kg', 't'))} CO2e"


def duration(seconds: float) -> str:
    """Return a duration: 12.0 s, 3 min 05 s, 2 h 10 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {left:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
