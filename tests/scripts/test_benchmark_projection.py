import benchmark
import torch
from benchmarks.projection import projection_table, random_weights

from st3.training.machine import Machine

CPU = torch.device("cpu")


def test_contenders_and_checks():
    arguments = benchmark.parse(["projection", "--quick", "--rounds", "1", "--sizes", "1e4"])
    [(_, settings)] = benchmark.tables_of(arguments, CPU)
    (section,) = projection_table(settings, Machine(CPU))
    results = [each.result for each in section.contenders]
    assert [f"{result['task']} {result['contender']}" for result in results] == [
        "threshold st3", "threshold sort", "threshold topk", "threshold np.partition", "threshold torch.kthvalue",
        "threshold copy", "projection st3", "projection st3_sigma", "projection naive", "projection copy",
    ]  # fmt: skip
    assert all(result["to_copy"]["n"] == 1 and not result["wrong"] for result in results)


def test_weights():
    equal = random_weights(2e5, CPU)
    assert [tuple(w.shape) for w in equal] == [(33, 33, 3, 3)] * 20
    assert equal[0].is_contiguous(memory_format=torch.channels_last)
    with torch.device("meta"):
        assert sum(w.numel() for w in random_weights(25.5e6, torch.device("meta"))) == 25_502_912
