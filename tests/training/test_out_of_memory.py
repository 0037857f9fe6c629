"""What a run that is out of memory advises, where nothing needs to be tried for it."""

from types import SimpleNamespace

import pytest
import torch

from sslkit.machine import distributed
from sslkit.training.out_of_memory import is_out_of_memory, out_of_memory


def advice(**settings) -> str:
    config = SimpleNamespace(**{"micro_batch": None, "batch_size": 512} | settings)
    parts = SimpleNamespace(config=config, stores=SimpleNamespace(image_size=96))
    return str(out_of_memory(parts, None, RuntimeError("out of memory")))


@pytest.mark.parametrize(("batch", "processes", "fits"), [(512, 2, 128), (1024, 4, 128), (96, 2, 24)])
def test_several_processes_are_advised_half_of_what_each_of_them_took(monkeypatch, batch, processes, fits):
    monkeypatch.setattr(distributed, "world", lambda: processes)
    message = advice(batch_size=batch)
    assert f"batch_size={batch}" in message
    assert f"{batch // processes} images on each of {processes} processes; set micro_batch={fits}" in message


def test_parts_of_the_share_and_not_of_the_part_that_was_too_large(monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: 2)
    assert "set micro_batch=3" in advice(batch_size=42, micro_batch=7)


def test_what_cannot_be_divided_is_reported(monkeypatch):
    assert "127 images cannot be split into micro-batches" in advice(batch_size=127)
    assert "2 at a time; use a smaller data.image_size or backbone" in advice(micro_batch=2)
    monkeypatch.setattr(distributed, "world", lambda: 2)
    assert "127 images cannot be split into micro-batches" in advice(batch_size=254)


@pytest.mark.parametrize(
    ("error", "known"),
    [
        (torch.OutOfMemoryError("whatever"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 7 bytes"),
            True,
        ),
        (RuntimeError("could not create a primitive descriptor"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_what_running_out_of_memory_looks_like(error, known):
    assert is_out_of_memory(error) == known
