"""Quantities have three digits and the unit that fits."""

import pytest

from sslkit.machine.units import BYTES, duration, emissions, energy, scaled


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0 bytes"), (999, "999 bytes"), (999.6, "1 kB"), (5.4e9, "5.4 GB"), (1234e9, "1.23 TB"), (5e16, "5e+04 TB")],
)
def test_bytes_are_in_the_unit_that_fits(value, words):
    assert scaled(value, BYTES) == words


def test_energy_and_emissions_of_a_short_run_are_no_powers_of_ten():
    assert [energy(kwh) for kwh in (6.56e-5, 0.31, 2.1, 0.0)] == ["65.6 mWh", "310 Wh", "2.1 kWh", "0 mWh"]
    assert [emissions(kg) for kg in (3.12e-5, 0.15, 1200)] == ["31.2 mg CO2e", "150 g CO2e", "1.2 t CO2e"]


def test_durations():
    assert [duration(s) for s in (2.78, 185, 7800)] == ["2.8 s", "3 min 05 s", "2 h 10 min"]
