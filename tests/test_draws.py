"""Random numbers belong to an image: independent of batch, order and process, and the same tomorrow."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twofold.draws import STREAMS, ImageDraws, SampleNoise

PINNED_BITS = [6306548946994845881, 14026318196984726008]
PINNED_START = [-0.004789925646036863, -0.17867180705070496, -0.6984406113624573, -1.0820808410644531]
PINNED_NEXT = [-0.3052781820297241, -0.47018662095069885, -1.1530083417892456, 0.2257090061903]

seeds = st.integers(0, 2**63 - 1)
counts = st.integers(0, 2**40)


@given(seed=seeds, index=counts, draw=counts, others=st.lists(st.tuples(seeds, counts, counts), max_size=5))
@settings(max_examples=50, deadline=None)
def test_numbers_do_not_depend_on_what_was_drawn_before(
    seed: int, index: int, draw: int, others: list[tuple[int, int, int]]
) -> None:
    fresh = ImageDraws("train")(seed, index, draw).standard_normal(7, dtype=np.float32)
    used = ImageDraws("train")
    for k, other in enumerate(others):
        used(*other).random(k)  # leaves the bit generator in the middle of a block
        used(*other).integers(0, 9, k, dtype=np.int32)
    assert np.array_equal(used(seed, index, draw).standard_normal(7, dtype=np.float32), fresh)


@given(a=st.tuples(seeds, counts, counts), b=st.tuples(seeds, counts, counts))
@settings(max_examples=50, deadline=None)
def test_different_places_give_different_numbers(a: tuple[int, int, int], b: tuple[int, int, int]) -> None:
    draws = ImageDraws("sample")
    first, second = draws(*a).random(4), draws(*b).random(4)
    assert np.array_equal(first, second) == (a == b)


def test_streams_differ() -> None:
    found = {name: tuple(ImageDraws(name)(5).random(4)) for name in STREAMS}
    assert len(set(found.values())) == len(STREAMS) == len(set(STREAMS.values()))


def test_long_draws_do_not_run_into_the_next() -> None:
    draws = ImageDraws("train")
    long = draws(1, 0, 0).random(100_000)
    assert not np.isin(draws(1, 0, 1).random(100), long).any()
    assert not np.isin(draws(1, 1, 0).random(100), long).any()


def test_values_are_those_of_the_day_they_were_pinned() -> None:
    """Philox4x64-10 and NumPy's ziggurat: a change of either would silently change every image of every seed."""
    bits = ImageDraws("sample")(7, 1, 2).bit_generator.random_raw(2)
    assert bits.tolist() == PINNED_BITS
    noise = SampleNoise([7], (1, 2, 2))
    np.testing.assert_array_equal(noise().flatten().numpy(), np.array(PINNED_START, np.float32))
    np.testing.assert_array_equal(noise().flatten().numpy(), np.array(PINNED_NEXT, np.float32))


def test_noise_of_an_image_is_independent_of_its_batch() -> None:
    together = SampleNoise([3, 1, 2**63 - 1], (2, 4, 4))
    alone = {seed: SampleNoise([seed], (2, 4, 4)) for seed in together.seeds}
    for _ in range(3):
        batch = together()
        assert batch.dtype == torch.float32
        for row, seed in zip(batch, together.seeds, strict=True):
            assert torch.equal(row, alone[seed]()[0])


def test_noise_is_standard_normal_and_uncorrelated() -> None:
    noise = SampleNoise(range(500), (3, 8, 8))
    first, second = noise().double(), noise().double()
    n = first.numel()
    for x in (first, second):
        assert abs(float(x.mean())) < 4 / math.sqrt(n)
        assert abs(float(x.var()) - 1) < 4 * math.sqrt(2 / n)
        assert abs(float((x**4).mean()) - 3) < 4 * math.sqrt(96 / n)
        assert abs(float((x[1:] * x[:-1]).mean())) < 4 / math.sqrt(n)  # neighbouring seeds
        assert abs(float((x[..., 1:] * x[..., :-1]).mean())) < 4 / math.sqrt(n)  # neighbouring pixels
    assert abs(float((first * second).mean())) < 4 / math.sqrt(n)  # successive draws


def test_an_unknown_stream_is_a_mistake_of_ours() -> None:
    with pytest.raises(KeyError):
        ImageDraws("trian")
