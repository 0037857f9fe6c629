"""Figures of NVIDIA cards, by a driver's library that is made up here: no card is at hand in tests."""

import sys
from types import SimpleNamespace

import pytest
import torch

from sslkit.machine import cards

CUDA = torch.device("cuda", 0)


class NVMLError(Exception):
    pass


@pytest.fixture
def driver(monkeypatch):
    """The library as pynvml offers it; asked by UUID, whatever CUDA_VISIBLE_DEVICES hides."""
    asked = []
    library = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: asked.append("init"),
        nvmlShutdown=lambda: asked.append("shutdown"),
        nvmlDeviceGetHandleByUUID=lambda uuid: asked.append(uuid) or uuid,
        nvmlDeviceGetEnforcedPowerLimit=lambda card: 700_000,
        nvmlDeviceGetPowerUsage=lambda card: 123_456,
        nvmlSystemGetDriverVersion=lambda: b"570.1",
        asked=asked,
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="abc"))
    return library


def test_figures_are_in_watts_and_of_the_card_by_its_uuid(driver):
    assert cards.power_limit(CUDA) == 700
    assert cards.power_draw(CUDA) == pytest.approx(123.456)
    assert driver.asked == 2 * ["init", "GPU-abc", "shutdown"]


def test_the_driver_s_version_is_text(driver):
    assert cards.driver_version() == "570.1"


def test_a_question_that_the_driver_refuses_has_no_answer(driver):
    def refuse(card):
        raise NVMLError("not supported")

    driver.nvmlDeviceGetEnforcedPowerLimit = refuse
    assert cards.power_limit(CUDA) is None
    assert driver.asked[-1] == "shutdown"


def test_without_a_driver_there_is_no_answer(driver):
    def refuse():
        raise NVMLError("driver not loaded")

    driver.nvmlInit = refuse
    assert cards.power_draw(CUDA) is None
    assert cards.driver_version() is None
