"""The machine measured: parts of a run on a layer of given sizes."""

import time

import pytest
import torch

from hf_prune.evaluation.throughput import measure_rates, timed

SIZES = (64, 128, 4, 2, 16, 500)


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_every_part_has_a_rate(dtype):
    rates = measure_rates(*SIZES, 32, "cpu", dtype)
    assert set(rates) == {"layer", "trained", "step", "head", "product", "factor"}
    assert all(1e-15 < seconds < 1e-3 for seconds in rates.values())
    assert rates["trained"] > rates["layer"], "there and back is farther than there"


def test_a_second_is_enough_for_a_small_model():
    begun = time.process_time()
    measure_rates(*SIZES, 32, "cpu", "float32")
    assert (time.process_time() - begun) / torch.get_num_threads() < 2


def test_what_is_timed_is_warmed_up_and_repeated():
    calls = []
    assert timed(lambda: calls.append(time.sleep(0.06 if not calls else 0.02)), torch.device("cpu")) < 0.06
    assert len(calls) >= 2
