"""The operations are what they claim to be: normal deviates, permutations, pure functions of their arguments."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext import native, native_numpy


@pytest.mark.parametrize("size", [*range(1, 70), 255, 256, 257, 1000, 1024, 3999, 4096, 4097])
def test_permute_is_a_bijection(size: int):
    images = native.permute(size * 7919, size, np.arange(size))
    np.testing.assert_array_equal(np.sort(images), np.arange(size))


def test_permute_is_a_bijection_of_a_million_and_looks_random():
    size = 1_000_003
    images = native.permute(11, size, np.arange(size))
    assert np.bincount(images, minlength=size).max() == 1
    correlation = np.corrcoef(np.arange(size), images)[0, 1]
    neighbours = np.corrcoef(images[:-1], images[1:])[0, 1]
    assert abs(correlation) < 5 / math.sqrt(size)
    assert abs(neighbours) < 5 / math.sqrt(size)
    cells = np.histogram2d(np.arange(size), images, bins=32)[0]
    expected = size / 1024
    assert ((cells - expected) ** 2 / expected).sum() < 1024 + 6 * math.sqrt(2 * 1024)


def test_permute_is_a_bijection_of_every_size_up_to_2000_and_of_a_sample_up_to_100000():
    random = np.random.default_rng(0)
    edges = [4**half + off for half in range(6, 9) for off in (-1, 0, 1)]
    for size in (*range(1, 2001), *edges, *random.integers(2001, 100_001, 60).tolist(), 100_000):
        images = native.permute(size * 31 + 7, size, np.arange(size))
        assert images.min() == 0 and images.max() == size - 1
        assert np.bincount(images, minlength=size).max() == 1, size


@pytest.mark.parametrize("size", [1 << 16, 100_003, 1_000_003])
@pytest.mark.parametrize("key", [0, 1, 2**63 + 12345])
def test_permute_has_no_serial_correlation(size: int, key: int):
    """Images at distance d, for near and far d, and after both halves of the network, are uncorrelated."""
    images = native.permute(key, size, np.arange(size)) / size
    for distance in (*range(1, 17), 255, 256, 257, 1023, 1024, 1025):
        assert abs(np.corrcoef(images[:-distance], images[distance:])[0, 1]) < 5 / math.sqrt(size - distance), distance


@pytest.mark.parametrize("size", [1 << 16, 100_003, 1_000_003])
@pytest.mark.parametrize("distance", [1, 2, 256])
def test_differences_of_images_are_spread_evenly(size: int, distance: int):
    """For a random permutation (image(i + d) - image(i)) mod n is uniform on 1 .. n-1: chi-square with 255 degrees."""
    images = native.permute(size ^ distance, size, np.arange(size))
    differences = (images[distance:] - images[:-distance]) % size
    counts = np.bincount((differences - 1) * 256 // (size - 1), minlength=256)
    expected = np.diff(-(-np.arange(257) * (size - 1) // 256)) * len(differences) / (size - 1)
    assert ((counts - expected) ** 2 / expected).sum() < 255 + 6 * math.sqrt(2 * 255)


def test_permute_depends_on_its_key():
    places = np.arange(1000)
    first, second = native.permute(1, 1000, places), native.permute(2, 1000, places)
    assert (first == second).sum() < 12


def test_permute_sends_every_image_to_every_place_over_keys():
    counts = np.zeros((7, 7))
    for key in range(7000):
        counts[np.arange(7), native.permute(key, 7, np.arange(7))] += 1
    assert ((counts - 1000) ** 2 / 1000).sum() < 36 + 6 * math.sqrt(2 * 36)


@settings(deadline=None, max_examples=30)
@given(key=st.integers(0, 2**64 - 1), start=st.integers(0, 5000), count=st.integers(0, 5000))
def test_counter_normal_of_a_slice_is_the_slice_of_the_whole(key: int, start: int, count: int):
    whole = native.counter_normal(key, 0, 10_000)
    np.testing.assert_array_equal(native.counter_normal(key, start, count), whole[start : start + count])


def test_counter_normal_block_edges_of_the_twin_are_invisible():
    whole = native_numpy.counter_normal(3, 0, 70_000)
    np.testing.assert_array_equal(native_numpy.counter_normal(3, 65_530, 20), whole[65_530:65_550])


def test_counter_normal_is_standard_normal():
    z = native.counter_normal(42, 0, 4_000_000).astype(np.float64)
    root = math.sqrt(len(z))
    assert abs(z.mean()) < 5 / root
    assert abs(z.var() - 1) < 5 * math.sqrt(2) / root
    assert abs((z**3).mean()) < 5 * math.sqrt(15) / root
    assert abs((z**4).mean() - 3) < 5 * math.sqrt(96) / root
    for limit in (0.5, 1.0, 2.0, 3.0, 4.0):
        share, expected = (np.abs(z) > limit).mean(), 2 * NormalDist().cdf(-limit)
        assert abs(share - expected) < 6 * math.sqrt(expected / len(z))


def test_counter_normal_streams_of_neighbouring_keys_are_independent():
    count = 200_000
    for first, second in ((0, 1), (7, 7 + 0x9E3779B97F4A7C15), (1, 1 << 63)):
        a, b = (native.counter_normal(key & (2**64 - 1), 0, count) for key in (first, second))
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(count)
        assert abs(np.corrcoef(a[1:], b[:-1])[0, 1]) < 5 / math.sqrt(count)


def test_inverse_normal_is_accurate_to_the_last_digits():
    u = np.concatenate([2.0 ** -np.arange(1, 54), np.linspace(0.001, 0.999, 999), 1 - 2.0 ** -np.arange(2, 54)])
    exact = np.array([NormalDist().inv_cdf(float(value)) for value in u])
    np.testing.assert_allclose(native_numpy._inverse_normal(u), exact, rtol=1e-13, atol=1e-15)


def test_known_values_do_not_change():
    np.testing.assert_array_equal(native.permute(0, 10, np.arange(10)), KNOWN_PERMUTATION)
    np.testing.assert_array_equal(native.counter_normal(0, 0, 4).view(np.uint32), KNOWN_NORMAL_BITS)


# A change of these values changes every training run: resumed runs would see other samples and other weights.
KNOWN_PERMUTATION = [2, 0, 8, 1, 9, 7, 4, 5, 6, 3]
KNOWN_NORMAL_BITS = [1064621822, 3195381028, 1051173210, 1055682633]
