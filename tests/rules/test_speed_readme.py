"""utils/speed/README.md: it knows every lever, and its numbers are those of the receipts."""

import json

import pytest
from conftest import ROOT

from utils import speed

README = (ROOT / "utils" / "speed" / "README.md").read_text("utf-8")
RECEIPTS = ROOT / "benchmarks" / "receipts"
STEPS = json.loads((RECEIPTS / "steps_h100.json").read_text("utf-8"))


def bench(name):
    return json.loads((RECEIPTS / "bench" / f"{name}.json").read_text("utf-8"))


def gib(record):
    return f"{record['peak_allocated_bytes'] / 2**30:.1f} GiB"


def tokens(rate):
    return f"{rate:,.0f} tokens/s"


def without_and_with(name):
    """The two rates of a receipt of a course without a lever."""
    record = bench(name)
    return [tokens(record["real_tokens_per_second"]), tokens(record["beside"])]


def opt(way):
    rows = {row["OPT-1.3b, forward and backward of the decoder"]: row for row in STEPS["decoder_of_opt"]}
    return rows[way]


def attention(way):
    rows = {row["4 layers of Gemma-2-9b, 8 rows"]: row for row in STEPS["levers_of_attention"]}
    return rows[way]


def milliseconds(row, key="ms a step"):
    return f"{row[key]} ms"


def milliseconds_and_gib(row, key="ms a step"):
    return f"{row[key]} ms, {row['peak GiB']} GiB"


def expected_rows():
    """(start of a row of "What they bring", its cells "without" and "with"), from the receipts."""
    gemma = "ms a step of 1,024 tokens"
    eager = attention("eager attention, compiled")
    not_compiled = attention("FlashAttention 4 as transformers has it, not compiled")
    lesson = attention("FlashAttention 4 as one operation, compiled: the lesson")
    no_mask, graphs, both = opt("without the padding mask"), opt("both"), opt("both, layers compiled")
    bias = bench("03_a_bias_for_each_layer")
    _, parts, last_token, _ = STEPS["levers_of_parts"]
    return [
        ("| `cuda_graphs` | lesson 02", *without_and_with("02_without_CUDA_graphs")),
        ("| `cuda_graphs` | lesson 03", *without_and_with("03_without_CUDA_graphs")),
        ("| `cuda_graphs` | decoder of OPT", milliseconds(no_mask), milliseconds(graphs)),
        ("| `compiled_graphs` instead", milliseconds_and_gib(graphs), milliseconds_and_gib(both)),
        ("| `no_padding_mask` |", milliseconds(opt("as usual")), milliseconds(no_mask)),
        (
            "| `shared_position_bias` | lesson 03",
            f"{tokens(bias['real_tokens_per_second'])}, {gib(bias)}",
            f"{tokens(bias['beside'])}, {gib(bench('03_course_on_H200'))}",
        ),
        (
            "| `compiled_layers` | 4 layers",
            milliseconds_and_gib(not_compiled, gemma),
            milliseconds_and_gib(lesson, gemma),
        ),
        ("| `flash_attention` instead", milliseconds_and_gib(eager, gemma), milliseconds_and_gib(lesson, gemma)),
        (
            "| `last_token` | Gemma-2-9b",
            f"{tokens(parts['real tokens/s'])}, {parts['peak GiB']} GiB",
            f"{tokens(last_token['real tokens/s'])}, {last_token['peak GiB']} GiB",
        ),
    ]


def test_every_lever_has_a_row_and_there_are_no_others():
    table = README.split("## The levers")[1].split("##")[0]
    named = [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")]
    assert sorted(named) == sorted(speed.LEVERS)


@pytest.mark.parametrize(("start", "without", "with_it"), expected_rows(), ids=lambda text: text)
def test_what_a_lever_brings_is_what_its_receipt_says(start, without, with_it):
    rows = [line.split(" | ") for line in README.splitlines() if line.startswith(start)]
    row = next(row for row in rows if len(row) == 5)
    assert row[2:4] == [without, with_it]


def test_every_row_of_what_they_bring_is_checked():
    table = README.split("## What they bring")[1].split("##")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    starts = [start for start, _, _ in expected_rows()]
    assert [start for row, start in zip(rows, starts, strict=True) if not row.startswith(start)] == []


def test_what_did_not_pay_is_what_the_receipts_say():
    text = README.split("## What did not pay")[1]
    assert f"says {bench('04_course')['real_tokens_per_second']:,.0f}." in text
    about = STEPS["levers_that_did_not_pay_about"]
    for numbers in ("175.3 ms", "175.7"):
        assert numbers in text
        assert numbers in about
    rows = {row["4 layers of Gemma-2-9b, 8 rows of 1,024 tokens"]: row for row in STEPS["levers_that_did_not_pay"]}
    ratio = "to the first row's in the same call"
    unpacked = rows["weights unpacked once, kept in bfloat16"]
    lesson = rows["as the lesson has it, with `eager`"]
    blocks = [rows[name][ratio] for name in rows if "causal blocks" in name]
    each_length = next(row for name, row in rows.items() if name.startswith("compiled for each length, 15 to 20 s"))
    assert f"{unpacked[ratio]} of the time, for {unpacked['peak GiB']} instead of {lesson['peak GiB']} GiB" in text
    assert "{} and {} times as long".format(*blocks) in text
    assert f"{each_length[ratio]} of the time, but 15 to 20 s" in text


def test_the_table_of_graphed_callables_is_that_of_its_receipt():
    receipt = json.loads((RECEIPTS / "graphed_callables_h200.json").read_text("utf-8"))
    table = README.split("| QLoRA, random weights")[1].split("\n\n")[0].splitlines()[2:]
    expected = []
    for ways in receipt["set_ups"].values():
        for numbers in ways.values():
            cells = (
                numbers["ms a step (median)"],
                f"{numbers['peak reserved GiB, 4 shapes']} GiB",
                f"{numbers['reserved GiB after forget']} GiB",
            )
            expected.append(" | ".join(map(str, cells)))
    assert [row.split(" | ", 2)[2].removesuffix(" |") for row in table] == expected
    assert len(expected) == 6
