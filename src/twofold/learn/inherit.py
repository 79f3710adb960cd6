"""Fine-tuning: what a run takes over from the denoiser it starts from, its architecture first, then its weights.

Both are taken once. From then on the run stands by itself: its settings are complete, its weights are its own.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

from ..codec import PixelCodec
from ..denoiser import NetworkDenoiser
from ..errors import UserError
from ..networks.trunk import Trunk, middle_layer
from ..networks.unet import UNet
from ..recognize.classifier import NetworkClassifier
from ..run import Run, load, newest_probe
from ..settings.network import TrunkSettings, UNetSettings
from ..settings.noise import EDMNoise, FlowNoise, VPNoise
from ..settings.resolve import differences
from ..settings.train import TrainSettings

S = TypeVar("S", UNetSettings, VPNoise | EDMNoise | FlowNoise)
OWN_UNET = {"dropout"}  # what a U-Net that is trained further may have otherwise
OWN_NOISE = {"p_mean", "p_std", "training"}  # likewise: how noise levels are drawn in training, not what they mean


def inherit(settings: TrainSettings, shape: tuple[int, int, int], earlier: Run) -> TrainSettings:
    """The settings with the U-Net and the noise family of `init_from` filled in.

    shape: of the data's images. earlier: the folder that is trained in; if it holds a state of the same run, the
    source is not read again (it may be gone). Raises `UserError` where source, data and settings disagree.
    """
    network = settings.network
    if not isinstance(network, TrunkSettings) or settings.init_from is None:
        return settings
    begun = earlier.settings() if any((earlier.path / "state").glob("[0-9]*")) else None
    if begun is not None and isinstance(begun.network, TrunkSettings) and begun.init_from == settings.init_from:
        source: Any = begun.network.unet, begun.noise
        best = begun.network.layer  # a probe made since changes nothing
    else:
        denoiser: Any = _source(settings.init_from)
        check_shapes(f"init_from={settings.init_from}", denoiser.shape, shape)
        source = denoiser.network.settings, denoiser.family.settings
        best = probed_layer(settings.init_from)
    unet = _taken(network.unet, source[0], OWN_UNET, "network.unet", settings.init_from)
    given = settings.noise if "noise" in settings.model_fields_set else None
    noise = _taken(given, source[1], OWN_NOISE, "noise", settings.init_from)
    update = {"unet": unet, "layer": network.layer or best or middle_layer(unet)}
    return settings.model_copy(update={"network": network.model_copy(update=update), "noise": noise})


def probed_layer(source: str) -> str | None:
    """The best layer of a run by its newest probe, None where it has not been probed."""
    probe = newest_probe(source)
    if probe is None or not (probe / "result.json").is_file():
        return None
    return str(json.loads((probe / "result.json").read_text())["results"]["one layer"]["places"][0][0])


def start_from(model: NetworkDenoiser | NetworkClassifier, settings: TrainSettings) -> list[str]:
    """Gives a freshly built trunk the averaged weights of `init_from`, by name. Returns what to tell the user.

    Weights of layers that the trunk has not are left out and named. Raises `UserError` for one it has and misses.
    """
    network, source = model.network, settings.init_from
    if not isinstance(network, Trunk) or source is None:
        return []
    if not network.settings.pretrained:
        return [f"the network of {source}, trained from scratch (network.pretrained=false)"]
    theirs, ours = _source(source).network.state_dict(), network.unet.state_dict()
    missing = [name for name in ours if name not in theirs or theirs[name].shape != ours[name].shape]
    if missing:
        what = f"{len(missing)} weights of the trunk are not there: " + ", ".join(missing[:3])
        raise UserError(f"init_from={source}", what, "it is not the model this run was begun with")
    network.unet.load_state_dict({name: theirs[name] for name in ours})
    left = list(dict.fromkeys(".".join(name.split(".")[:2]) for name in theirs if name not in ours))
    note = f"started from {source}: {len(ours)} weights"
    return [f"{note}; left out, because they run after {list(network.layers)[-1]}: {', '.join(left)}" if left else note]


def check_shapes(where: str, trained: tuple[int, int, int], data: tuple[int, int, int]) -> None:
    """Raises `UserError` where a model of (C, H, W) images would be given others."""
    if tuple(trained) != tuple(data):
        channels, height, width = trained
        what = f"was trained on {_by(trained)} images, the data has {_by(data)}"
        raise UserError(where, what, f"set data.size={height}x{width} and data.channels={channels}")


def _by(shape: tuple[int, int, int]) -> str:
    return "x".join(map(str, shape))


def _source(source: str) -> NetworkDenoiser:
    """The denoiser to start from. Raises `UserError` for a model that is none, or none with a U-Net of pixels."""
    model = load(source)
    if not isinstance(model, NetworkDenoiser):
        raise UserError(f"init_from={source}", "is a classifier", "give the run of a denoiser")
    if not isinstance(model.network, UNet) or not isinstance(model.codec, PixelCodec):
        what = f"is a {type(model.network).__name__}, a trunk is made of a U-Net of pixels"
        raise UserError(f"init_from={source}", what, "give the run of one")
    return model


def _taken(given: S | None, inherited: S, own: set[str], where: str, source: str) -> S:
    """The inherited settings with those of `own` that were given. Raises `UserError` for others that differ."""
    if given is None:
        return inherited
    named = given.model_fields_set - {"kind"} | ({"kind"} if given.kind != inherited.kind else set())
    if "kind" not in named:
        update = {name: getattr(given, name) for name in named & own}
        inherited, named = inherited.model_copy(update=update), named - own
    different = [path for path in differences(given, inherited) if path.split(".")[0] in named]
    if different:
        path = f"{where}.{different[0]}"
        raise UserError(path, f"is not what {source} was trained with", f"leave {where} to init_from")
    return inherited
