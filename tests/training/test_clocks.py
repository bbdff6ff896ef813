"""How long a loader was waited for."""

import time

import pytest
import torch

from st3.training.clocks import DataClock


def slow_loader(count: int, seconds: float):
    for number in range(count):
        time.sleep(seconds)
        yield number


def test_requests_count_and_the_work_between_them_does_not():
    clock = DataClock(torch.device("cpu"))
    assert clock.read() == 0
    seen = []
    for number in clock.timed(slow_loader(4, 0.05)):
        time.sleep(0.1)
        seen.append(number)
    assert seen == [0, 1, 2, 3]
    assert 0.2 <= clock.read() < 0.4  # 0.6 with the work


def test_a_reading_starts_anew_also_in_the_middle():
    clock = DataClock(torch.device("cpu"))
    batches = clock.timed(slow_loader(5, 0.05))
    next(batches)
    assert 0.05 <= clock.read() < 0.15
    assert clock.read() == 0
    for _ in range(3):
        next(batches)
    assert 0.15 <= clock.read() < 0.3


def test_a_request_that_fails_says_so():
    def broken():
        yield 1
        raise OSError("disk")

    batches = DataClock(torch.device("cpu")).timed(broken())
    assert next(batches) == 1
    with pytest.raises(OSError, match="disk"):
        next(batches)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_only_what_the_device_waits_for_counts():
    matrix = torch.randn(8192, 8192, device="cuda")

    def work(times: int) -> None:
        for _ in range(times):
            torch.mm(matrix, matrix)

    work(2)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    work(4)
    torch.cuda.synchronize()
    enough = 2 + int(4 * 0.3 / (time.perf_counter() - begin))  # for 0.3 s

    def read(busy: bool) -> float:
        clock = DataClock(torch.device("cuda"))
        batches = clock.timed(slow_loader(3, 0.05))
        for _ in range(3):
            if busy:
                work(enough)
            next(batches)
        torch.cuda.synchronize()
        return clock.read()

    assert 0.145 <= read(busy=False) < 0.25
    assert read(busy=True) < 0.03
