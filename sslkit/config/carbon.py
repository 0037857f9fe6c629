"""Settings for computing energy and CO2 equivalent, and the carbon intensity of electricity by region."""

from importlib.util import find_spec
from pathlib import Path

from pydantic import Field, field_validator

from sslkit.config.base import Config


class Carbon(Config):
    """Settings for computing energy and CO2e; training does not depend on them."""

    region: str = "world"
    """Region where the electricity is generated: world, or a country's three-letter ISO code, such as FRA."""
    intensity: float | None = Field(None, ge=0)
    """Carbon intensity in grams of CO2e per kWh; null: the region's."""
    tdp: float | None = Field(None, gt=0)
    """Power of one device at full load, in watts; null: the GPU's own limit, or 85 for a CPU."""
    pue: float = Field(1.0, ge=1)
    """Power usage effectiveness: energy of the whole data centre, cooling included, over that of its machines."""

    @field_validator("region")
    @classmethod
    def _known(cls, region: str) -> str:
        from sslkit.plugins import suggest

        if intensity_of(region) is None:
            raise ValueError(
                f"unknown region; {suggest(region, list(REGIONS))}, or set carbon.intensity and leave it out"
            )
        return region


# fmt: off
REGIONS = {
    "world": 475.0, "asia-southeast1": 420.0,
    "AUS": 548.692, "AUT": 110.812, "BEL": 138.107, "BRA": 98.348, "CAN": 170.043, "CHE": 34.843, "CHN": 582.317,
    "DEU": 380.95, "DNK": 151.65, "ESP": 174.05, "FIN": 79.158, "FRA": 56.039, "GBR": 237.589, "IND": 713.441,
    "IRL": 290.805, "ITA": 330.718, "JPN": 485.392, "KOR": 430.567, "NLD": 267.622, "NOR": 30.08, "POL": 661.926,
    "SGP": 470.783, "SWE": 40.695, "TUR": 464.586, "TWN": 642.378, "USA": 369.473, "ZAF": 707.686,
}
# fmt: on
"""Carbon intensity in g CO2e per kWh. Countries, by ISO 3166-1 alpha-3: electricity of 2023, Our World in Data, as in
global_energy_mix.json of codecarbon 3.3. world: IEA 2019, Global Energy & CO2 Status Report. asia-southeast1: Google's
Singapore region, as Sonawane et al. 2021 (section 7) take it from the ML CO2 Impact calculator."""


def intensity_of(region: str) -> float | None:
    """Return g CO2e per kWh in a region of `REGIONS` or a country known to an installed codecarbon; otherwise None."""
    known = {name.lower(): grams for name, grams in REGIONS.items()}
    return known.get(region.lower()) or _codecarbon_intensities().get(region.upper())


def emissions(kwh: float, carbon: Carbon) -> float:
    """Return kg CO2e: kWh × PUE × intensity (Lacoste et al. 2019, section 2)."""
    return kwh * carbon.pue * _intensity(carbon) / 1000


def _intensity(carbon: Carbon) -> float:
    if carbon.intensity is not None:
        return carbon.intensity
    grams = intensity_of(carbon.region)
    assert grams is not None, "Carbon validates the region"
    return grams


def electricity_basis(carbon: Carbon) -> str:
    where = "carbon.intensity" if carbon.intensity is not None else carbon.region
    return f"{_intensity(carbon):g} g CO2e/kWh ({where}), PUE {carbon.pue:g}"


def _codecarbon_intensities() -> dict[str, float]:
    """Return g CO2e per kWh by country, from codecarbon's own data; empty if codecarbon is not installed."""
    import json

    spec = find_spec("codecarbon")
    if spec is None or spec.origin is None:
        return {}
    file = Path(spec.origin).parent / "data/private_infra/global_energy_mix.json"
    if not file.is_file():
        return {}
    return {code: row["carbon_intensity"] for code, row in json.loads(file.read_text(encoding="utf-8")).items()}
