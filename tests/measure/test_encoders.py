"""Encoders: what they return, that they change nothing, and their versions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from twofold.denoiser import Encoder
from twofold.errors import UserError
from twofold.measure import ENCODERS, ClassifierEncoder, PixelEncoder, embed, encoder, probabilities
from twofold.taps import Layer


class Small(nn.Module):
    """A classifier with a layer table: convolution, batch norm, dropout, mean, linear."""

    class_names: Sequence[str] = ("cat", "dog", "<b>")

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(5, 3)
        self.layers = {"stem": Layer(self.body[0], 5, 1), "body": Layer(self.body, 5, 1)}

    def logits(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        assert float(sigma) == 0 and x.abs().max() <= 1
        return self.head(self.body(x).mean((2, 3)))


def images(n: int = 7, channels: int = 3, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, channels, size, size), generator=generator, dtype=torch.uint8)


def every_encoder() -> list[Encoder]:
    return [encoder(name, Small()) for name in ENCODERS] + [encoder("pixels4")]


@pytest.mark.parametrize("chosen", every_encoder(), ids=lambda chosen: chosen.name)
def test_every_encoder(chosen: Any) -> None:
    pictures = images()
    before = pictures.clone()
    features = chosen.embed(pictures)
    assert features.ndim == 2 and len(features) == 7 and features.is_floating_point() and not features.requires_grad
    assert torch.isfinite(features).all()
    assert torch.equal(pictures, before)
    assert torch.equal(chosen.embed(pictures), features)
    torch.testing.assert_close(embed(chosen, pictures, batch=3), features)
    assert chosen.version
    with pytest.raises(TypeError, match="uint8"):
        chosen.embed(pictures.float())


def test_pixels_are_in_minus_one_to_one() -> None:
    ends = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 2, 2)
    assert PixelEncoder().embed(ends).tolist() == [[-1] * 4, [1] * 4]
    assert PixelEncoder().embed(images()).shape == (7, 3 * 8 * 8)


def test_smaller_pixels_are_averages() -> None:
    pictures = images()
    small = PixelEncoder(4).embed(pictures).view(7, 3, 4, 4)
    expected = (pictures.double() / 127.5 - 1).view(7, 3, 4, 2, 4, 2).mean((3, 5))
    torch.testing.assert_close(small.double(), expected, atol=1e-6, rtol=0)
    assert PixelEncoder(4).name == "pixels4"
    torch.testing.assert_close(PixelEncoder(8).embed(pictures), PixelEncoder().embed(pictures))


def test_classifier_features_are_the_mean_of_its_last_layer() -> None:
    classifier = Small().train()
    features = ClassifierEncoder(classifier).embed(images())
    assert classifier.training and classifier.body[1].training
    assert classifier.body[1].num_batches_tracked == 0  # evaluation: running statistics untouched
    classifier.eval()
    torch.testing.assert_close(classifier.head(features), classifier.logits(images() / 127.5 - 1, 0.0))


def test_version_follows_the_weights() -> None:
    one, same, other = ClassifierEncoder(Small()), ClassifierEncoder(Small()), ClassifierEncoder(Small(seed=1))
    assert one.version == same.version != other.version


def test_probabilities_in_batches() -> None:
    classifier = Small().train()
    found = probabilities(classifier, images(), batch=2)
    assert found.dtype == torch.float64 and found.shape == (7, 3) and not found.requires_grad
    torch.testing.assert_close(found.sum(1), torch.ones(7, dtype=torch.float64))
    assert classifier.training
    classifier.eval()
    expected = classifier.logits(images() / 127.5 - 1, 0.0).softmax(1)
    torch.testing.assert_close(found.float(), expected)


def test_a_classifier_that_is_no_module_will_do() -> None:
    class Fixed:
        class_names: Sequence[str] = ("a", "b")

        def logits(self, x: Tensor, sigma: Tensor | float) -> Tensor:
            return torch.stack([x.mean((1, 2, 3)), -x.mean((1, 2, 3))], 1)

    assert probabilities(Fixed(), images()).shape == (7, 2)
    with pytest.raises(UserError, match="Fixed has no layers"):
        ClassifierEncoder(Fixed())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: encoder("pixel"), "encoder=pixel: no such encoder; did you mean 'pixels'"),
        (lambda: encoder("convnet"), "no classifier was given"),
        (lambda: encoder("pixels0"), "size=0"),
        (lambda: PixelEncoder(9).embed(images()), "larger than the images \\(8 x 8\\)"),
        (lambda: embed(PixelEncoder(), images()[:0]), "expected uint8"),
        (lambda: embed(PixelEncoder(), images().float()), "expected uint8"),
        (lambda: embed(PixelEncoder(), images()[0]), "expected uint8"),
        (lambda: probabilities(Small(), images().float()), "expected uint8"),
    ],
)
def test_mistakes(call: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()  # type: ignore[operator]
