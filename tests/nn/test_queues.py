"""The FIFO queue against a list that forgets its oldest items."""

from collections import deque

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.nn import functional as F

from sslkit.nn.queues import Queue

DIM = 4


def batches(*sizes: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, DIM, generator=generator) for n in sizes]


def ordered(rows: Tensor, ages: Tensor) -> tuple[Tensor, Tensor]:
    order = rows[:, 0].argsort()
    return rows[order], ages[order]


@pytest.mark.parametrize("size", [1, 5, 6, 7, 12])
def test_holds_the_newest_rows_and_their_ages(size):
    queue, expected = Queue(size, DIM), deque(maxlen=size)
    start = list(queue.rows)
    expected.extend((row, None) for row in start)
    for rows in batches(3, 1, 3, 4, 2, 7, 1, 20, 3):
        queue.push(rows)
        expected = deque(((row, age if age is None else age + 1) for row, age in expected), maxlen=size)
        expected.extend((F.normalize(row, dim=0), 0) for row in rows)
        mine = ordered(queue.rows, queue.ages)
        pushed = [age is not None for _, age in expected]
        theirs = ordered(torch.stack([row for row, _ in expected]), torch.tensor([age or 0 for _, age in expected]))
        torch.testing.assert_close(mine[0], theirs[0])
        health = queue.health()
        assert health["queue_filled"].item() == pytest.approx(sum(pushed) / size)
        ages = [age for _, age in expected if age is not None]
        assert health["queue_age"].item() == pytest.approx(sum(ages) / len(ages))
        if all(pushed):
            assert torch.equal(mine[1], theirs[1])


def test_starts_with_random_directions():
    torch.manual_seed(0)
    queue = Queue(500, DIM)
    torch.testing.assert_close(queue.rows.norm(dim=1), torch.ones(500))
    assert queue.rows.mean(0).norm() < 0.2
    health = queue.health()
    assert health["queue_filled"] == 0
    assert health["queue_age"] == 0


def test_rows_are_normalised_and_carry_no_graph():
    queue = Queue(3, DIM)
    queue.push(100 * torch.randn(2, DIM, requires_grad=True))
    queue.push(torch.randn(2, DIM, dtype=torch.bfloat16))
    assert queue.rows.dtype == torch.float32
    assert not queue.rows.requires_grad
    torch.testing.assert_close(queue.rows.norm(dim=1), torch.ones(3))


def test_a_restored_queue_goes_on_in_the_same_place():
    queue, twin = Queue(5, DIM), Queue(5, DIM)
    first, second = batches(3, 4)
    queue.push(first)
    twin.load_state_dict(load(save(queue.state_dict())))
    for each in (queue, twin):
        each.push(second)
    assert all(torch.equal(a, b) for a, b in zip(queue.buffers(), twin.buffers()))
    assert queue.pushed == 7
