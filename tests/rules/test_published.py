"""The published numbers of the references that need no weights: computed here, exact, or the difference proven."""

import pytest
from conftest import ROOT

from benchmarks import published_numbers

NUMBERS = published_numbers.numbers()
DIFFERENT = "BERT-large + LoRA r = 12: trainable"


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number.what)
def test_the_number_is_the_published_one(number):
    if number.what == DIFFERENT:
        assert number.published - number.here == 5 * 1024 + 5, "the head of five classes, weight and bias"
        assert "5,125" in number.why
    else:
        assert number.here == number.published


def test_an_old_peft_trained_the_head_twice():
    assert published_numbers.bert_large_lora(old_peft=True)[0] == 1_189_898


def test_what_numel_hides_in_four_bits():
    trainable, total = published_numbers.bert_large_in_nf4()
    packed_twice = 2 * (total - 32_108_549)
    assert packed_twice == 303_038_464, "24 layers and the pooler"
    assert 32_108_549 - trainable == 222_208, "biases of quantized layers"


def test_most_of_the_published_t5_is_wo_in_float32():
    wo = 48 * 1024 * 16384 * 4
    assert wo == 3_221_225_472
    assert wo / published_numbers.t5_in_nf4() == pytest.approx(0.75, abs=0.01)
    assert published_numbers.t5_in_nf4(wo_too=True) < 1.55e9


def test_all_published_numbers_are_there_and_a_wrong_size_would_show():
    assert len(NUMBERS) == 13
    assert len({number.published for number in NUMBERS}) == 13
    assert published_numbers.opt_lora(rank=15)[0] != 3_145_728


def test_the_table_of_the_page_is_computed():
    page = (ROOT / "docs" / "published-numbers.md").read_text()
    written = page.split("published:begin")[1].split("\n", 1)[1].split("<!-- published:end")[0]
    assert written.strip() == published_numbers.table()
