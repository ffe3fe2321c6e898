"""A micro-batch in parts of so many tokens is the same step in less memory."""

import itertools

import pytest
import torch
from tiny_trainers import KINDS, outcome, same, trainer_of_uneven_rows

from utils.training.micro_batches import parts_by_rows, parts_by_tokens, split_evenly


@pytest.mark.parametrize("kind", KINDS)
def test_parts_by_tokens_are_the_same_step_in_less_memory(kind, tmp_path):
    whole, shapes = trainer_of_uneven_rows(kind, tmp_path)
    wanted = outcome(whole)
    assert shapes == [(4, 8), (4, 8), (4, 3)]
    in_parts, shapes = trainer_of_uneven_rows(kind, tmp_path)
    in_parts.tokens_at_once = 16
    assert same(wanted, outcome(in_parts), 1e-5)
    assert shapes == [(1, 8), (3, 5), (2, 8), (2, 8), (4, 3)], "too many parts, or uneven ones, or padding was left"
    row_by_row, shapes = trainer_of_uneven_rows(kind, tmp_path)
    row_by_row.tokens_at_once = 1
    assert same(wanted, outcome(row_by_row), 1e-5)
    assert shapes == [(1, size) for size in (8, 5, 4, 3, 8, 8, 8, 8, 3, 3, 3, 3)], "a row is the least"
    other, _ = trainer_of_uneven_rows(kind, tmp_path, per_device_train_batch_size=3)
    assert not same(wanted, outcome(other), 1e-3)


def test_no_other_cuts_make_fewer_parts_or_a_smaller_largest_one():
    assert split_evenly([9], 1) == [0, 1]
    assert split_evenly([1] * 32, 12) == [0, 11, 22, 32]
    for widths in itertools.product((1, 3, 4, 8), repeat=5):
        for limit in (8, 11, 16, 40):
            largest = {}  # {cuts: tokens of the largest part}, of all ways to cut
            for count in range(5):
                for cuts in itertools.combinations(range(1, 5), count):
                    boundaries = (0, *cuts, 5)
                    sizes = [(end - begin) * max(widths[begin:end]) for begin, end in itertools.pairwise(boundaries)]
                    largest[boundaries] = max(sizes)
            best = min((len(cuts), size) for cuts, size in largest.items() if size <= limit)
            boundaries = tuple(split_evenly(list(widths), limit))
            assert (len(boundaries), largest[boundaries]) == best, (widths, limit)


def shapes_of(parts, name="input_ids"):
    return [tuple(part[name].shape) for part in parts]


def test_parts_keep_padding_on_the_left_and_the_collators_multiple():
    mask = torch.tensor([[1] * 5 + [0] * 7, [1] * 2 + [0] * 10, [1] * 12])
    batch = {"input_ids": torch.arange(36).view(3, 12), "attention_mask": mask, "labels": torch.arange(3), "kind": "a"}
    parts = list(parts_by_tokens(batch, 16, multiple=4))
    assert [part["input_ids"].tolist() for part in parts] == [
        [list(range(8)), list(range(12, 20))],
        [list(range(24, 36))],
    ]
    assert [part["labels"].tolist() for part in parts] == [[0, 1], [2]]
    assert {part["kind"] for part in parts} == {"a"}
    padded_left = {**batch, "attention_mask": mask.flip(1)}
    assert shapes_of(parts_by_tokens(padded_left, 24, multiple=4)) == [(2, 12), (1, 12)]
    with_texts_as_labels = {**batch, "labels": torch.ones(3, 12)}
    parts = list(parts_by_tokens(with_texts_as_labels, 16, multiple=4))
    assert shapes_of(parts, "labels") == [(2, 8), (1, 12)]
    # the labels of an encoder-decoder are texts of their own, even if they have as many columns
    parts = list(parts_by_tokens(with_texts_as_labels, 16, multiple=4, is_encoder_decoder=True))
    assert shapes_of(parts) == [(2, 8), (1, 12)]
    assert shapes_of(parts, "labels") == [(2, 12), (1, 12)]


def test_parts_by_rows_are_alike_and_keep_their_padding():
    batch = {"input_ids": torch.arange(35).view(7, 5), "labels": torch.arange(7)}
    parts = list(parts_by_rows(batch, 3))
    assert shapes_of(parts) == [(3, 5), (3, 5), (1, 5)]
    assert torch.equal(torch.cat([part["input_ids"] for part in parts]), batch["input_ids"])
