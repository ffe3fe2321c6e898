"""Calibration and position bias, against computations by hand and judges that are made to be good or bad."""

import numpy as np
import pytest

from utils import metrics
from utils.rouge import Rouge, one_sentence_a_line


def test_the_calibration_error_is_that_of_a_computation_by_hand():
    # statements in order: .1 false, .1 true, .2 false | .2 false, .7 true, .7 false
    error, points = metrics.calibration_error([[0.7, 0.2, 0.1], [0.7, 0.1, 0.2]], [0, 1], bins=2)
    assert [size for *_, size in points] == [3, 3]
    assert [stated for stated, *_ in points] == pytest.approx([0.4 / 3, 1.6 / 3])
    assert [share for _, share, _ in points] == pytest.approx([1 / 3, 1 / 3])
    assert error == pytest.approx((0.2 + 0.2) / 2)
    assert metrics.calibration_error([[1, 0, 0], [0, 1, 0]], [0, 1])[0] == 0
    assert metrics.calibration_error([[1, 0, 0], [0, 1, 0]], [1, 0])[0] == pytest.approx(2 / 3)
    assert len(metrics.calibration_error(np.full((40, 3), 1 / 3), [0] * 40, bins=10)[1]) == 10


def test_who_means_what_he_says_has_a_small_calibration_error_and_a_boaster_a_large_one():
    rng = np.random.default_rng(0)
    said = rng.dirichlet([1, 1, 1], size=4000)
    happened = (said.cumsum(axis=1) > rng.random((4000, 1))).argmax(axis=1)
    boast, modest = (said**power / (said**power).sum(axis=1, keepdims=True) for power in (3, 0.3))
    assert metrics.calibration_error(said, happened)[0] < 0.02
    assert metrics.calibration_error(boast, happened)[0] > 0.1
    assert metrics.calibration_error(modest, happened)[0] > 0.1


# ---- words of all alphabets


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("-5", "5"),
        ("5%", "5"),
        ("कि", "की"),
        ("👍", "👎"),
        ("?", "!"),
        ("C++", "C"),
        ("C#", "C"),
        ("€5", "$5"),
        ("x < 5", "x > 5"),
        ("不是", "是"),
        ("ไม่ใช่", "ใช่"),
        ("10²", "102"),
        ("I'm -3", "I'm 3"),
        ("", "a"),
    ],
)
def test_what_differs_is_no_match(one, other):
    assert metrics.exact_match(one, other) == 0
    assert metrics.exact_match(one, one) == 1
    assert metrics.token_f1(one, one) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Yes.", "yes"),
        ("caf\u00e9", "cafe\u0301"),
        ("\u22125", "-5"),
        ("5 %", "5%"),
        ("5 percent", "5%"),
        ("don\u2019t", "don't"),
        ("\uff15", "5"),
        ("2020\u20132024", "2020-2024"),
        ("Straße", "STRASSE"),
        ("سلام.", "سلام"),
    ],
)
def test_what_is_spelt_otherwise_is_a_match(one, other):
    assert metrics.exact_match(one, other) == 1


def test_scripts_without_spaces_are_counted_by_letters():
    assert metrics.words_of("它有5%和3個") == ["它", "有", "5%", "和", "3", "個"]
    assert metrics.token_f1("今天很热", "今天很冷") == 0.75
    assert metrics.words_of("हिन्दी में") == ["हिन्दी", "में"]


def test_signs_and_currencies_belong_to_a_stated_fact():
    found = metrics.stated_facts("Fine €350 at \u22125 °C, 12 % until 21 июня 2025; COVID-19 in 2020-2024")
    assert found == ["€350", "\u22125", "12 %", "21", "2025", "19", "2020", "2024"]
    assert metrics.fact_hits("it is -5 and 12 percent", ["5", "-5", "12 %", "12"]) == [0.0, 1.0, 1.0, 0.0]


def test_rouge_of_texts_without_words_and_with_marks():
    rouge = Rouge(["rouge1", "rougeLsum"])
    for text in ("👍👍", "!!!", "कि", "司机在桥上开灯。不得停车。", "คนขับต้องเปิดไฟ"):
        assert rouge.compute(predictions=[text], references=[text]) == {"rouge1": 1.0, "rougeLsum": 1.0}
    for one, other in (("कि", "की"), ("👍", "👎")):
        assert rouge.compute(predictions=[one], references=[other])["rouge1"] == 0
    assert rouge.compute(predictions=["cafe\u0301"], references=["caf\u00e9"])["rouge1"] == 1
    assert one_sentence_a_line("灯。车。 A. B") == "灯。\n车。\nA.\nB"
