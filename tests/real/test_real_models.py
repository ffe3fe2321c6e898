"""What real models must reach in the lessons, by the receipts of `make real`; not part of `make test`."""

import pytest

from benchmarks import quality

REAL, TINY = quality.read("real"), quality.read("tiny")


def the_score(receipts, number):
    if number not in receipts:
        pytest.fail(f"there is no receipt of lesson {number}: make real NB={number}")
    return receipts[number].mean("after")


def test_a_real_encoder_learns_the_task():
    assert the_score(REAL, "01") >= 0.90


def test_qlora_comes_near_full_fine_tuning():
    assert the_score(REAL, "02") >= the_score(REAL, "01") - 0.03


def test_the_real_model_is_better_than_the_tiny_one_and_both_are_better_than_counting_words():
    baseline = REAL["01"].mean("baseline")
    assert 0.55 <= baseline <= 0.80
    assert baseline + 0.08 <= the_score(TINY, "01") <= the_score(REAL, "01")
