import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.batching import pad, split_by_tokens

ROWS = st.lists(st.lists(st.integers(0, 500), max_size=9), min_size=1, max_size=8)
WIDTHS = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), max_size=25)
SMALL = settings(deadline=None, max_examples=100)


@pytest.mark.parametrize("side", ["left", "right"])
@given(rows=ROWS, pad_id=st.integers(0, 500))
@SMALL
def test_padding_stands_on_one_side_and_nothing_is_lost(side: str, rows: list[list[int]], pad_id: int) -> None:
    tokens, mask = pad(rows, pad_id, side)
    width = max(map(len, rows))
    assert tokens.dtype == torch.long and mask.dtype == torch.bool
    assert tokens.shape == mask.shape == (len(rows), width)
    for row, ids, counts in zip(rows, tokens, mask, strict=True):
        filling = [pad_id] * (width - len(row))
        assert ids.tolist() == (filling + row if side == "left" else row + filling)
        real = [True] * len(row)
        assert counts.tolist() == ([False] * len(filling) + real if side == "left" else real + [False] * len(filling))


def cost(widths: list[tuple[int, int]], indices: list[int]) -> int:
    return len(indices) * (max(widths[i][0] for i in indices) + max(widths[i][1] for i in indices))


@given(WIDTHS, st.integers(1, 300))
@SMALL
def test_every_row_once_and_within_the_budget_unless_alone(widths: list[tuple[int, int]], budget: int) -> None:
    cut = split_by_tokens(widths, budget)
    assert sorted(index for part in cut for index in part) == list(range(len(widths)))
    assert all(part for part in cut)
    assert all(len(part) == 1 or cost(widths, part) <= budget for part in cut)


@given(WIDTHS, st.integers(1, 300))
@SMALL
def test_a_micro_batch_ends_only_where_the_next_row_would_not_fit(widths: list[tuple[int, int]], budget: int) -> None:
    cut = split_by_tokens(widths, budget)
    for part, following in zip(cut, cut[1:], strict=False):
        assert cost(widths, [*part, following[0]]) > budget


@given(WIDTHS, st.integers(1, 300), st.randoms(use_true_random=False))
@SMALL
def test_the_cut_depends_on_widths_not_on_order(widths, budget, order) -> None:  # type: ignore[no-untyped-def]
    permuted = list(widths)
    order.shuffle(permuted)
    cuts = [[[row[i] for i in part] for part in split_by_tokens(row, budget)] for row in (widths, permuted)]
    assert cuts[0] == cuts[1]


def test_similar_lengths_stand_together() -> None:
    """In the order given both micro-batches would cost 40 tokens; so the second costs 4."""
    widths = [(18, 2), (1, 1), (18, 2), (1, 1)]
    assert split_by_tokens(widths, 40) == [[0, 2], [1, 3]]


def test_no_rows_no_micro_batches() -> None:
    assert split_by_tokens([], 100) == []
