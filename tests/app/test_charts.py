import re

import pytest

from hf_prune.app import charts
from hf_prune.report.schema.model import Member

FRONT = [
    Member(removed_ratio=0.1, layers=9, parameters=90, kl=0.02),
    Member(removed_ratio=0.3, layers=7, parameters=70, kl=0.2, knee=True),
    Member(removed_ratio=0.9, layers=1, parameters=10, kl=5.0),
]


def places(svg):
    return [tuple(map(float, found)) for found in re.findall(r"cx='([\d.]+)' cy='([\d.]+)'", svg)]


def test_every_model_of_a_front_is_a_point_further_right_and_higher():
    svg = charts.front(FRONT, "kl")
    xs, ys = zip(*places(svg), strict=True)
    assert list(xs) == sorted(xs) and list(ys) == sorted(ys, reverse=True) and len(xs) == 3
    assert all(charts.LEFT <= x <= charts.WIDE for x in xs) and all(0 <= y <= charts.HIGH - charts.BELOW for y in ys)
    assert re.findall(r"data-member='(\d)'", svg) == ["0", "1", "2"]
    assert "7 layers, 30.0 % removed, 0.2, the knee" in svg and "1 layer, 90.0 % removed, 5" in svg


def test_axes_have_names_units_and_ticks():
    svg = charts.front(FRONT, "kl")
    assert "parameters removed (%)" in svg and "KL to the dense model (nats per token)" in svg
    assert {"10", "50", "90"} <= set(re.findall(r"'>(\d+)</text>", svg)) and ">0.1</text>" in svg


@pytest.mark.parametrize("members", [[], FRONT[:1], [FRONT[0], FRONT[0].replace(values={"kl": 0.0})]])
def test_no_front_is_too_short_to_draw(members):
    assert charts.front(members, "kl").count("<circle") == len(members)
