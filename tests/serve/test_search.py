"""The search for neighbours equals one by brute force, whatever of the vectors is kept."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from twofold.errors import UserError
from twofold.serve import search
from twofold.serve.search import Search


def walked(steps: Generator[None, None, Any]) -> Any:
    """What a generator returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def searched(
    vectors: Tensor, queries: Tensor, k: int, held: int, origin: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    one = Search(vectors.__getitem__, len(vectors), vectors.mean(0) if origin is None else origin, held)
    walked(one.read())
    return walked(one.nearest(queries, k))


@pytest.mark.parametrize("sloppy", [False, True])
@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 60), st.integers(1, 9), st.integers(1, 3), st.integers(1, 70), st.sampled_from([0, 400, 2**20]),
    st.sampled_from(["pixels", "far", "few"]), st.integers(0, 10**6),
)  # fmt: skip
def test_equals_brute_force(sloppy: bool, n: int, d: int, q: int, k: int, held: int, kind: str, seed: int) -> None:
    """Also far from 0, where float32 products are all rounding, and of vectors that are there several times."""
    draw = torch.Generator().manual_seed(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "BLOCK", 100)
        if sloppy:
            patch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
        if kind == "far":
            vectors, queries = (1000 + torch.randn(rows, d, generator=draw) / 100 for rows in (n, q))
        else:
            most = 256 if kind == "pixels" else 2
            vectors, queries = (torch.randint(most, (rows, d), generator=draw).float() for rows in (n, q))
        distance, index = searched(vectors, queries, k, held, torch.zeros(d) if seed % 2 else None)
    brute = (queries.double()[:, None] - vectors.double()).square().sum(2).sqrt()
    expected, order = brute.sort(stable=True)
    assert torch.equal(distance, expected[:, :k])
    assert torch.equal(index, order[:, :k])


def test_only_what_fits_is_kept_and_only_the_rest_asked_for_again() -> None:
    vectors, asked = torch.randn(1000, 64, generator=torch.Generator().manual_seed(0)), []

    def ask(rows: Tensor) -> Tensor:
        asked.append(len(rows))
        return vectors[rows]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "BLOCK", 100 * 64 * 4)
        one = Search(ask, 1000, vectors.mean(0), held=650 * 64 * 4)
        walked(one.read())
    assert asked == [100] * 6
    asked.clear()
    walked(one.nearest(vectors[:1], 3))
    assert asked[:4] == [100] * 4 and len(asked) == 5 and asked[4] < 20  # the few that were measured again


def test_what_is_not_finite() -> None:
    vectors = torch.eye(3)
    with pytest.raises(UserError, match="features: NaN or infinity"):
        searched(torch.full((3, 3), torch.nan), vectors, 1, 2**20)
    with pytest.raises(UserError, match="features: NaN or infinity"):
        searched(vectors, torch.full((1, 3), torch.inf), 1, 2**20, torch.zeros(3))
