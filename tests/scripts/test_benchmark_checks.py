import pytest
import torch
from benchmarks.checks import check_projection, check_threshold, check_zeros
from benchmarks.naive import shrink_and_rescale
from benchmarks.projection import ways_to_threshold

from st3 import UserError


def test_zeros():
    raw, mask = torch.randn(1000), torch.zeros(1000)
    mask[:100] = 1
    assert check_zeros("it", [raw * mask], [raw], [mask]) == {"zeros": 900, "zeros_expected": 900, "weights": 1000}
    raw[:50] = 0  # grown, without a gradient yet
    assert check_zeros("it", [raw * mask], [raw], [mask])["zeros"] == 950
    raw[:50] = 1
    for wrong in (raw * mask + 1e-9 * (1 - mask), torch.zeros(1000)):
        with pytest.raises(UserError, match=r"it has .* weights that are 0 and should not be, or the reverse: nothing"):
            check_zeros("it", [wrong], [raw], [mask])
    mask[:103] = 1
    with pytest.raises(UserError, match="it masks 897 weights of 1,000, not 900: nothing reported"):
        check_zeros("it", [raw * mask], [raw], [mask])
    assert check_zeros("it", [raw * mask], [raw], [mask], any_count=True) == {"zeros": 897, "weights": 1000}


@pytest.mark.parametrize("size", [1000, 1001])  # 900.0 lies on a value
def test_thresholds(size):
    values = torch.randn(size)
    wanted = values.abs().quantile(0.9)
    for name, way in ways_to_threshold(values).items():
        check_threshold(name, values, way())
        assert way() == pytest.approx(wanted.item(), rel=1e-6)
    for wrong in (wanted * 0.999, wanted * 1.001):
        with pytest.raises(UserError, match="it finds the threshold"):
            check_threshold("it", values, wrong)


def test_projections():
    raw = [torch.randn(50, 20), torch.randn(30, 10)]
    tau = torch.cat([w.flatten() for w in raw]).abs().quantile(0.9)
    right = [shrink_and_rescale(w, tau) for w in raw]
    check_projection("it", raw, right)
    with pytest.raises(UserError, match="it projects 50 channels to other weights than the equations say"):
        check_projection("it", raw, [right[0] + 1e-9, right[1]])
    with pytest.raises(UserError, match=r"it projects \d+ channels"):
        check_projection("it", raw, [right[0] * 1.01, right[1]])
    with pytest.raises(UserError, match=r"it projects \d+ channels"):
        check_projection("it", raw, right, by_sigma=True)
