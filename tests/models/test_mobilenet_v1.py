"""MobileNetV1 against the numbers of its paper."""

import pytest
from model_cases import macs, meta, parameters


@pytest.mark.parametrize(
    ("width", "million_macs", "million_parameters"),  # Howard et al., table 6
    [(1.0, 569, 4.2), (0.75, 325, 2.6), (0.5, 149, 1.3), (0.25, 41, 0.5)],
)
def test_mobilenet_v1_width(width, million_macs, million_parameters):
    model = meta("mobilenet_v1", classes=1000, width=width)
    assert macs(model, 3, 224) / 1e6 == pytest.approx(million_macs, abs=1)
    assert parameters(model) / 1e6 == pytest.approx(million_parameters, abs=0.06)


def test_mobilenet_v1_exactly():
    model = meta("mobilenet_v1", classes=1000)
    assert macs(model, 3, 224) == 568_740_352
    assert parameters(model) == 4_231_976
