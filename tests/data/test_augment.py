"""The augmentation against independent computations: SciPy's interpolation, torch's flips, wavelet theory."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from twofold.data.augment import AUGMENT_DRAWS, AUGMENT_LABELS, CENTRE, SYM6, augment, flip, warp

# columns of u, in the order of the table in twofold.data.augment
(
    MIRROR,
    UPEND_ON,
    UPEND,
    SCALE_ON,
    SCALE,
    TURN_ON,
    TURN,
    STRETCH_ON,
    STRETCH,
    ALONG,
    ALONG_ON,
    MOVE_ON,
    MOVE_X,
    MOVE_Y,
) = range(14)
ON, OFF = 0.0, 0.999


def normal(w: float) -> float:
    """The uniform whose normal quantile is w."""
    return 0.5 * (1 + math.erf(w / math.sqrt(2)))


def angle(a: float) -> float:
    """The uniform whose angle is a."""
    return (a / math.pi + 1) / 2


def draws(n: int = 1, **chosen: float) -> Tensor:
    """Uniforms with which nothing happens, but for what is chosen."""
    u = torch.full((n, AUGMENT_DRAWS), OFF, dtype=torch.float64)
    for name, value in chosen.items():
        u[:, globals()[name]] = value
    return u


def smooth(height: int = 32, width: int = 32, n: int = 1, seed: int = 0) -> Tensor:
    """Images (n, 2, H, W) float64 without fine detail, in about [-0.8, 0.8]."""
    noise = np.random.default_rng(seed).standard_normal((n, 2, 3 * height, 3 * width))
    blurred = ndimage.gaussian_filter(noise, (0, 0, 3, 3))[..., height : 2 * height, width : 2 * width]
    return torch.from_numpy(0.8 * blurred / np.abs(blurred).max())


def reference(x0: Tensor, to_input: np.ndarray) -> np.ndarray:
    """The same affine map by SciPy's cubic spline, mirrored at the edges; to_input (2, 3) in x, y from the centre."""
    height, width = x0.shape[-2:]
    centre = np.array([(height - 1) / 2, (width - 1) / 2])
    matrix = to_input[::-1, 1::-1]  # x, y -> rows, columns
    offset = centre + to_input[::-1, 2] - matrix @ centre
    out = [[ndimage.affine_transform(c, matrix, offset, order=3, mode="mirror") for c in image] for image in x0.numpy()]
    return np.array(out)


def assert_near(out: Tensor, expected: np.ndarray, inner: float = 0.01, edge: float = 0.06) -> None:
    """Near everywhere; nearer where the filter does not see the kink between an image and its mirror image."""
    away = np.abs(out.numpy() - expected)
    assert away.max() < edge
    assert away[..., 6:-6, 6:-6].max() < inner
    assert np.abs(expected).max() > 0.3  # or nothing would have been compared


def rotation(a: float) -> np.ndarray:
    return np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])


# -- the filter -------------------------------------------------------------------------------------------------------


def sym6_by_factorisation() -> list[np.ndarray]:
    """All orthogonal 12-tap filters with six vanishing moments, by spectral factorisation (Daubechies 1992, ch. 6).

    |H|^2 = cos^12(w/2) P(sin^2(w/2)) with P(y) = sum_k C(5+k, k) y^k; from each set of roots {z, 1/z, conj} one half.
    """
    roots_y = np.roots([math.comb(5 + k, k) for k in range(5, -1, -1)])
    groups = []  # roots z of each y, y = (2 - z - 1/z) / 4, conjugates together
    for y in roots_y[roots_y.imag >= -1e-9]:
        z = np.roots([1, 4 * y - 2, 1])
        pairs = [[root] if abs(y.imag) < 1e-9 else [root, root.conj()] for root in z]
        groups.append(pairs)
    filters = []
    for choice in np.ndindex(*(2,) * len(groups)):
        roots = [root for pairs, i in zip(groups, choice, strict=True) for root in pairs[i]]
        h = np.real(np.poly(np.concatenate([-np.ones(6), np.array(roots)])))
        filters.append(h * math.sqrt(2) / h.sum())
    return filters


def phase_error(h: np.ndarray) -> float:
    """How far from linear the phase of a filter is, over the half band it passes."""
    w = np.linspace(0.01, math.pi / 2, 200)
    phase = np.unwrap(np.angle(np.exp(-1j * np.outer(w, np.arange(len(h)))) @ h))
    return float(np.abs(phase - w * (w @ phase) / (w @ w)).max())


def test_the_filter_is_sym6() -> None:
    """Of all filters with its length and moments it is the one nearest to linear phase, or its mirror image."""
    candidates = sym6_by_factorisation()
    best = min(candidates, key=phase_error)
    assert min(np.abs(best - SYM6).max(), np.abs(best[::-1] - SYM6).max()) < 1e-9


def test_the_filter_is_orthogonal_with_six_vanishing_moments() -> None:
    h = np.array(SYM6)
    assert h.sum() == pytest.approx(math.sqrt(2), abs=1e-11)
    for shift in range(6):
        assert h[2 * shift :] @ h[: 12 - 2 * shift] == pytest.approx(float(shift == 0), abs=1e-11)
    alternating = h * (-1.0) ** np.arange(12)
    for moment in range(6):
        assert alternating @ (np.arange(12) / 11.0) ** moment == pytest.approx(0, abs=1e-9)
    assert pytest.approx(np.arange(12) @ h / h.sum()) == CENTRE


# -- each operation alone ---------------------------------------------------------------------------------------------


def test_probability_zero_leaves_only_the_horizontal_flip() -> None:
    x0 = torch.rand(64, 3, 8, 8) * 2 - 1
    u = torch.rand(64, AUGMENT_DRAWS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out, labels = augment(x0, u, 0.0)
    mirrored = u[:, MIRROR] < 0.5
    assert 10 < mirrored.sum() < 54
    assert torch.equal(out[mirrored], x0[mirrored].flip(-1)) and torch.equal(out[~mirrored], x0[~mirrored])
    assert labels.shape == (64, AUGMENT_LABELS) and labels.dtype == torch.float32
    assert torch.equal(labels[:, 0], mirrored.float()) and not labels[:, 1:].any()


def test_flips_are_exact() -> None:
    x0 = torch.rand(2, 3, 5, 7)
    for chosen, expected, label in (
        ({"MIRROR": 0.2}, x0.flip(-1), [1, 0]),
        ({"UPEND_ON": ON, "UPEND": 0.2}, x0.flip(-2), [0, 1]),
        ({"UPEND_ON": ON, "UPEND": 0.7}, x0, [0, 0]),
        ({"MIRROR": 0.2, "UPEND_ON": ON, "UPEND": 0.2}, x0.flip(-1, -2), [1, 1]),
    ):
        out, labels = augment(x0, draws(2, **chosen), 0.5)
        assert torch.equal(out, expected)
        assert labels[0].tolist() == [*label, 0, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(("dx", "dy"), [(1, 0), (0, 1), (-3, 2), (5, -7), (16, 0), (-15, 14)])
def test_whole_pixel_translations_are_exact(dx: int, dy: int) -> None:
    x0 = torch.rand(1, 3, 32, 32, dtype=torch.float64) * 2 - 1
    out, labels = augment(x0, draws(MOVE_ON=ON, MOVE_X=normal(dx / 4), MOVE_Y=normal(dy / 4)), 0.5)
    mirrored = np.pad(x0.numpy(), ((0, 0), (0, 0), (31, 31), (31, 31)), mode="reflect")
    np.testing.assert_allclose(out, mirrored[..., 31 - dy : 63 - dy, 31 - dx : 63 - dx], atol=1e-7)  # right and down
    np.testing.assert_allclose(labels, [[0] * 7 + [dx / 4, dy / 4]], atol=1e-6)


@pytest.mark.parametrize(("wx", "wy"), [(5.0, 0.0), (-4.5, 5.5)])
def test_far_translations_go_on_in_the_mirror(wx: float, wy: float) -> None:
    x0 = smooth(24, 32)
    out, _ = augment(x0, draws(MOVE_ON=ON, MOVE_X=normal(wx), MOVE_Y=normal(wy)), 0.5)
    assert_near(out, reference(x0, np.array([[1, 0, -4 * wx], [0, 1, -3 * wy]])), inner=0.06)


def test_quarter_turns_of_a_smooth_image() -> None:
    x0 = smooth()
    for turns in (-1, 1):
        out, labels = augment(x0, draws(TURN_ON=ON, TURN=angle(turns * math.pi / 2)), 0.5)
        assert_near(out, x0.rot90(turns, (2, 3)).numpy())  # counter-clockwise
        np.testing.assert_allclose(labels, [[0, 0, 0, -1, turns, 0, 0, 0, 0]], atol=1e-6)
    half, _ = augment(x0, draws(TURN_ON=ON, TURN=angle(math.pi)), 0.5)
    assert_near(half, x0.flip(-1, -2).numpy())


@pytest.mark.parametrize("w", [-1.5, -0.4, 0.7, 2.0])
def test_isotropic_scale(w: float) -> None:
    x0 = smooth(24, 40)
    out, labels = augment(x0, draws(SCALE_ON=ON, SCALE=normal(w)), 0.5)
    factor = 2 ** (0.2 * w)
    assert_near(out, reference(x0, np.array([[1 / factor, 0, 0], [0, 1 / factor, 0]])))
    np.testing.assert_allclose(labels, [[0, 0, w, 0, 0, 0, 0, 0, 0]], atol=1e-6)


@pytest.mark.parametrize(("w", "r"), [(1.0, 0.0), (-1.0, 0.0), (1.3, 0.7), (-0.8, 2.5)])
def test_anisotropic_scale(w: float, r: float) -> None:
    x0 = smooth(32, 28)
    chosen = {"STRETCH_ON": ON, "STRETCH": normal(w), "ALONG": angle(r), "ALONG_ON": ON if r else OFF}
    out, labels = augment(x0, draws(**chosen), 0.5)
    s = 2 ** (0.2 * w)
    matrix = rotation(-r) @ np.diag([1 / s, s]) @ rotation(r)
    assert_near(out, reference(x0, np.c_[matrix, [0, 0]]))
    np.testing.assert_allclose(labels, [[0, 0, 0, 0, 0, w * math.cos(r), w * math.sin(r), 0, 0]], atol=1e-6)


def test_stretching_along_x_widens() -> None:
    x0 = torch.zeros(1, 1, 32, 32)
    x0[..., 12:20, 12:20] = 1
    out, _ = augment(x0, draws(STRETCH_ON=ON, STRETCH=normal(2.0)), 0.5)
    wide, high = (out > 0.5).any(dim=2).sum(), (out > 0.5).any(dim=3).sum()
    assert wide in (10, 11, 12) and high in (5, 6, 7)  # 8 * 2^0.4 = 10.6 and 8 / 2^0.4 = 6.1


def test_all_together_in_the_stated_order() -> None:
    x0 = smooth(30, 34, seed=3)
    scale, turn, w, r, wx, wy = 0.5, 0.4, -0.7, 1.1, 0.6, -0.9
    u = draws(
        MIRROR=ON, SCALE_ON=ON, SCALE=normal(scale), TURN_ON=ON, TURN=angle(turn), STRETCH_ON=ON, STRETCH=normal(w),
        ALONG=angle(r), ALONG_ON=ON, MOVE_ON=ON, MOVE_X=normal(wx), MOVE_Y=normal(wy),
    )  # fmt: skip
    out, labels = augment(x0, u, 0.5)
    s = 2 ** (0.2 * w)
    linear = 2 ** (-0.2 * scale) * rotation(turn) @ rotation(-r) @ np.diag([1 / s, s]) @ rotation(r)
    shift = np.array([34 * wx / 8, 30 * wy / 8])
    expected = reference(x0.flip(-1), np.c_[linear, -linear @ shift])
    assert_near(out, expected)
    expected_label = [1, 0, scale, math.cos(turn) - 1, math.sin(turn), w * math.cos(r), w * math.sin(r), wx, wy]
    np.testing.assert_allclose(labels, [expected_label], atol=1e-6)


# -- properties -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(32, 32), (5, 40), (2, 3), (1, 1), (64, 48)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4), (torch.bfloat16, 5e-3)]
)
def test_the_identity_reproduces_its_input(shape: tuple[int, int], dtype: torch.dtype, tolerance: float) -> None:
    x0 = (torch.rand(2, 3, *shape) * 2 - 1).to(dtype)
    identity = torch.tensor([[1, 0, 0], [0, 1, 0]], dtype=torch.float64).expand(2, 2, 3)
    out = warp(x0, identity)
    assert out.dtype == dtype and (out - x0).abs().max() < tolerance


def test_inactive_images_come_back_bit_for_bit() -> None:
    x0 = torch.rand(8, 3, 16, 16) * 2 - 1
    u = draws(8)
    u[3, [SCALE_ON, SCALE]] = torch.tensor([ON, normal(1.0)], dtype=torch.float64)
    out, labels = augment(x0, u, 0.12)
    others = [i for i in range(8) if i != 3]
    assert torch.equal(out[others], x0[others]) and not labels[others].any()
    assert not torch.equal(out[3], x0[3]) and labels[3, 2] == pytest.approx(1)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32), probability=st.floats(0, 1), keep=st.integers(0, 6))
def test_an_image_does_not_depend_on_the_others(seed: int, probability: float, keep: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.rand(7, 2, 12, 10, generator=generator) * 2 - 1
    u = torch.rand(7, AUGMENT_DRAWS, generator=generator, dtype=torch.float64)
    together, labels = augment(x0, u, probability)
    alone, label = augment(x0[keep : keep + 1], u[keep : keep + 1], probability)
    assert torch.equal(labels[keep], label[0])
    torch.testing.assert_close(together[keep], alone[0], rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=25)
@given(u=st.lists(st.floats(0, 1, exclude_max=True), min_size=AUGMENT_DRAWS, max_size=AUGMENT_DRAWS))
def test_any_uniforms_give_finite_images_in_range(u: list[float]) -> None:
    x0 = (torch.rand(1, 1, 9, 14, generator=torch.Generator().manual_seed(0)) > 0.5).float() * 2 - 1
    out, labels = augment(x0, torch.tensor([u], dtype=torch.float64), 1.0)
    assert out.isfinite().all() and out.abs().max() <= 1 and labels.isfinite().all()


def test_a_constant_image_stays_constant() -> None:
    x0 = torch.full((50, 1, 16, 16), 0.3)
    u = torch.rand(50, AUGMENT_DRAWS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    out, _ = augment(x0, u, 1.0)
    torch.testing.assert_close(out, x0, rtol=0, atol=1e-5)


def test_how_often_and_how_much() -> None:
    """The labels' moments over many images are those of the table."""
    n, p = 40_000, 0.3
    u = torch.from_numpy(np.random.default_rng(0).random((n, AUGMENT_DRAWS)))
    _, labels = augment(torch.zeros(n, 1, 1, 1), u, p)
    labels = labels.double()
    active = (labels != 0).double().mean(dim=0)
    assert active.tolist() == pytest.approx([0.5, p / 2, p, p, p, p, p / 2, p, p], abs=0.01)
    assert (labels[:, [2, 7, 8]] ** 2).mean(dim=0).tolist() == pytest.approx([p, p, p], abs=0.015)
    assert (labels[:, 5] ** 2 + labels[:, 6] ** 2).mean() == pytest.approx(p, abs=0.015)
    assert (labels[:, 4] ** 2).mean() == pytest.approx(p / 2, abs=0.01)
    assert labels.mean(dim=0)[[2, 4, 5, 6, 7, 8]].abs().max() < 0.015


def test_numpy_draws_are_taken() -> None:
    u = np.random.default_rng(0).random((3, AUGMENT_DRAWS))
    x0 = torch.rand(3, 1, 8, 8)
    assert torch.equal(augment(x0, u, 1.0)[0], augment(x0, torch.from_numpy(u), 1.0)[0])


def test_mistakes_of_the_caller() -> None:
    x0 = torch.zeros(2, 1, 4, 4)
    with pytest.raises(ValueError, match=r"u is \(2, 3\); 2 images need \(2, 14\)"):
        augment(x0, torch.zeros(2, 3), 0.1)
    with pytest.raises(ValueError, match=r"probability 1\.5 is not in 0\.\.1"):
        augment(x0, draws(2), 1.5)


@pytest.mark.parametrize(
    "make", [lambda: torch.randint(0, 256, (4, 3, 2, 5), dtype=torch.uint8), lambda: torch.rand(4, 1, 2, 2)]
)
def test_flip(make: Callable[[], Tensor]) -> None:
    images = make()
    out = flip(images, torch.tensor([0.1, 0.5, 0.49, 0.9]))
    assert out.dtype == images.dtype
    for i, mirrored in enumerate([True, False, True, False]):
        assert torch.equal(out[i], images[i].flip(-1) if mirrored else images[i])
