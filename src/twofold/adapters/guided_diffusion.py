"""U-Nets of guided-diffusion (ADM) and its forks, from the state dicts that were published.

Their weights tell the widths, the levels, where attention is, how the embedding enters and whether a variance was
learned. They do not tell how many heads attention has, nor in which of two orders its qkv rows are, nor the noise
table: in the wrong one a file loads and computes something else. The published models (Dhariwal and Nichol 2021) are
known by their widths:

| images | widths                       | blocks | heads    | order  | table  |
| 64     | 192 x (1, 2, 3, 4)           | 3      | of 64    | new    | cosine |
| 128    | 256 x (1, 1, 2, 3, 4)        | 2      | 4        | legacy | linear |
| 256    | 256 x (1, 1, 2, 2, 4, 4)     | 2      | of 64    | legacy | linear |
| 512    | 256 x (.5, 1, 1, 2, 2, 4, 4) | 2      | of 64    | legacy | linear |

For others `x.json` beside `x.pt` says it (`twofold.settings.checkpoint`), or images do: the right order denoises
better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..denoiser import NetworkDenoiser
from ..errors import UserError
from ..networks.blocks import Attention, Block
from ..networks.unet import UNet
from ..noise import family
from ..settings.checkpoint import CheckpointSettings
from ..settings.network import UNetSettings
from ..settings.noise import VPNoise
from ..weightsfile import read_tensors
from .checkpoint_facts import count_of, exact, options_for, size_of, untold
from .diffusers_files import check_weights
from .suspicion import is_better

Weights = Mapping[str, Tensor]
Order = Literal["legacy", "new"]
MARKS = ("time_embed.0.weight", "input_blocks.0.0.weight")  # names that this layout alone has
BLOCK = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "emb": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "skip": "skip_connection",
}
ATTENTION = {"norm": "norm", "qkv": "qkv", "proj": "proj_out"}
ENDS = {
    "embedding.first": "time_embed.0",
    "embedding.second": "time_embed.2",
    "embedding.label": "label_emb",
    "enc.0": "input_blocks.0.0",
    "norm": "out.0",
    "out": "out.2",
}
OTHERWISE: dict[str, str] = {  # how suspicion calls the other order's reading of weights taken for this one
    "legacy": "q, k, v of each head put together",
    "new": "q, k, v taken from each head in turn",
}
EXAMPLE = '{"size": 64, "head_channels": 64, "attention_order": "legacy", "noise": {"table": "linear"}}'
SIZES = {(1, 2, 3, 4): 64, (1, 1, 2, 3, 4): 128, (1, 1, 2, 2, 4, 4): 256, (0.5, 1, 1, 2, 2, 4, 4): 512}


@dataclass(frozen=True)
class Layout:
    """What the weights tell. embedding: channels of the sinusoid. widths, attends: by level, the finest first."""

    channels: int
    outputs: int
    embedding: int
    widths: tuple[int, ...]
    blocks: int
    attends: tuple[bool, ...]
    classes: int
    scale_shift: bool
    residual: bool

    @property
    def learns_variance(self) -> bool:
        return self.outputs == 2 * self.channels


def read(path: Path | str, calibration: Tensor | None = None, **options: Any) -> NetworkDenoiser:
    """The denoiser in a `.pt` or `.safetensors` file of this layout, in eval mode without gradients.

    options: those of `CheckpointSettings`, over the ones in the .json beside the file. calibration: images (16 or more)
    as x0, of the kind the model was trained on; they decide the attention order where nothing else does.
    Raises `UserError` for weights that are missing or too many, and naming what neither weights nor options tell.
    """
    path = Path(path)
    return from_weights(str(path), read_tensors(path, command_line=True), options_for(path, options), calibration)


def from_weights(
    where: str, weights: Weights, options: CheckpointSettings, calibration: Tensor | None = None
) -> NetworkDenoiser:
    """The denoiser with these weights; see `read`. where: the file, for messages."""
    layout = layout_of(where, weights)
    options = completed(where, layout, options, calibration is not None)
    if options.attention_order is None:
        assert calibration is not None
        return _by_images(where, weights, layout, options, calibration)
    return _made(where, weights, layout, options)


def layout_of(where: str, weights: Weights) -> Layout:
    """What can be read off the shapes. Raises `UserError` for a network that is not a denoiser of images alone."""
    stem, last = size_of(where, weights, "input_blocks.0.0.weight", 4), size_of(where, weights, "out.2.weight", 4)
    count = count_of(weights, "output_blocks")
    plain = _ending(weights, count, "conv.weight")
    ends = plain or _ending(weights, count, "in_layers.0.weight")
    blocks = ends[0] if ends else count - 1
    levels, rest = divmod(count, blocks + 1)
    if count == 0 or rest or ends != [k * (blocks + 1) - 1 for k in range(1, levels)]:
        what = f"{count} output_blocks of no known arrangement"
        raise UserError(f"weights of {where}", what, "the file is not complete")
    first = [f"output_blocks.{level * (blocks + 1)}" for level in reversed(range(levels))]
    embed = size_of(where, weights, "middle_block.0.emb_layers.1.weight", 2)
    layout = Layout(
        channels=stem[1],
        outputs=last[0],
        embedding=size_of(where, weights, "time_embed.0.weight", 2)[1],
        widths=tuple(size_of(where, weights, f"{name}.0.in_layers.2.weight", 4)[0] for name in first),
        blocks=blocks,
        attends=tuple(f"{name}.1.qkv.weight" in weights for name in first),
        classes=len(weights["label_emb.weight"]) if "label_emb.weight" in weights else 0,
        scale_shift=embed[0] == 2 * size_of(where, weights, "middle_block.0.in_layers.2.weight", 4)[0],
        residual=bool(ends) and not plain,
    )
    _check(where, layout, stem[0])
    return layout


def _ending(weights: Weights, count: int, part: str) -> list[int]:
    """The output blocks that end with a change of resolution of this kind, behind a residual block and attention."""
    return [k for k in range(count) if any(f"output_blocks.{k}.{place}.{part}" in weights for place in (1, 2))]


def _check(where: str, layout: Layout, stem: int) -> None:
    inputs, outputs = layout.channels, layout.outputs
    if outputs not in (inputs, 2 * inputs) or (inputs, outputs) == (6, 6):
        what = f"{inputs} channels in, {outputs} out: it is given more than the noisy image (an upsampler)"
        raise UserError(f"weights of {where}", what, "only denoisers of C channels with C or 2C outputs can be read")
    if layout.widths[0] != stem or any(width % stem for width in layout.widths):
        what = f"levels of {', '.join(map(str, layout.widths))} channels after a first layer of {stem}"
        raise UserError(f"weights of {where}", what, "the widths must be multiples of the first layer's")


def completed(where: str, layout: Layout, options: CheckpointSettings, images: bool) -> CheckpointSettings:
    """The options with what is known of the published models filled in. images: the attention order may stay open.

    Raises `UserError` naming what is not known.
    """
    ratio = tuple(width / layout.embedding for width in layout.widths)
    published = _published(layout, ratio)
    known: dict[str, Any] = {"size": SIZES.get(ratio), **published}
    if options.heads or options.head_channels:
        known = {name: value for name, value in known.items() if name not in ("heads", "head_channels")}
    known = {name: value for name, value in known.items() if getattr(options, name) is None}
    options = options.model_copy(update=known)
    needed = {
        "size": options.size,
        "heads or head_channels": options.heads or options.head_channels,
        "noise": options.noise,
        "attention_order": options.attention_order or images or options.heads == 1,
    }
    missing = [name for name, value in needed.items() if not value]
    if missing:
        raise untold(where, missing, EXAMPLE)
    multiple = 2 ** (len(layout.widths) - 1)
    if options.size and options.size % multiple:
        raise UserError(f"size={options.size} of {where}", f"its levels need a multiple of {multiple}")
    if options.heads == 1 and options.attention_order is None:  # both orders are the same
        options = options.model_copy(update={"attention_order": "new"})
    return options


def _published(layout: Layout, ratio: tuple[float, ...]) -> dict[str, Any]:
    """Heads, order and noise of the published model with these widths, {} if there is none."""
    size = SIZES.get(ratio)
    attends = tuple(bool(size) and (size or 0) >> level in (32, 16, 8) for level in range(len(ratio)))
    alike = layout.scale_shift and layout.residual and (layout.channels, layout.outputs) == (3, 6)
    if not alike or layout.attends != attends or layout.classes not in (0, 1000):
        return {}
    match size, layout.embedding, layout.blocks:
        case 64, 192, 3:
            return {"head_channels": 64, "attention_order": "new", "noise": VPNoise(table="cosine")}
        case 128, 256, 2:
            return {"heads": 4, "attention_order": "legacy", "noise": VPNoise()}
        case ((256 | 512), 256, 2):
            return {"head_channels": 64, "attention_order": "legacy", "noise": VPNoise()}
    return {}


def settings_of(layout: Layout, options: CheckpointSettings) -> UNetSettings:
    """The U-Net of this layout; `options` are complete."""
    assert options.size is not None
    stem = layout.widths[0]
    return UNetSettings(
        channels=stem,
        multipliers=tuple(width // stem for width in layout.widths),
        blocks=layout.blocks,
        attention=tuple(options.size >> level for level, attends in enumerate(layout.attends) if attends),
        heads=options.heads or 1,
        head_channels=options.head_channels,
        dropout=options.dropout,
        classes=layout.classes,
        learned_variance=layout.learns_variance,
        resample="residual" if layout.residual else "conv",
        conditioning="scale_shift" if layout.scale_shift else "add",
        embedding_order="cos_sin",
        embedding_endpoint=False,
        embedding_channels=layout.embedding if layout.embedding != stem else None,
        norm_group_channels=1,  # always 32 groups
        init="zero_out",
    )


def _made(where: str, weights: Weights, layout: Layout, options: CheckpointSettings) -> NetworkDenoiser:
    assert options.size is not None and options.noise is not None and options.attention_order is not None
    settings, shape = settings_of(layout, options), (layout.channels, options.size, options.size)
    with torch.device("meta"):
        network = UNet(settings, shape)
    _assign(network, where, weights, options.attention_order)
    names = options.class_names
    if names and len(names) != layout.classes:
        raise UserError(f"class_names of {where}", f"{len(names)} names", f"the network knows {layout.classes} classes")
    made = NetworkDenoiser(network, family(options.noise), shape, layout.classes, class_names=names)
    return made.eval().requires_grad_(False)


def _by_images(
    where: str, weights: Weights, layout: Layout, options: CheckpointSettings, images: Tensor
) -> NetworkDenoiser:
    """The denoiser in the order that denoises these images clearly better. Raises `UserError` where neither does."""
    for order, wrong in (("new", "legacy"), ("legacy", "new")):
        taken_wrong = _made(where, weights, layout, options.model_copy(update={"attention_order": wrong}))
        if is_better(taken_wrong, images, OTHERWISE[wrong]):
            return _made(where, weights, layout, options.model_copy(update={"attention_order": order}))
    what = f"{len(images)} images do not decide between attention_order=legacy and new"
    raise UserError(where, what, "set attention_order, or give more images of the kind it was trained on")


def names_of(network: UNet) -> dict[str, str]:
    """{our module: theirs} of every module that has weights."""
    blocks, names = network.settings.blocks, dict(ENDS)
    for k in range(1, len(network.enc)):
        names |= _module(network.enc[k], f"enc.{k}", f"input_blocks.{k}", 0, "op")
    assert network.mid is not None
    names |= _module(network.mid.first, "mid.first", "middle_block", 0, "")
    names |= _module(network.mid.second, "mid.second", "middle_block", 2, "")
    for j, block in enumerate(network.dec):
        names |= _module(block, f"dec.{j}", f"output_blocks.{j}", 0, "")
    for k, up in enumerate(network.up):
        last = (k + 1) * (blocks + 1) - 1
        place = 1 if network.dec[last].attention is None else 2
        names |= _module(up, f"up.{k}", f"output_blocks.{last}", place, "conv")
    return names


def _module(module: nn.Module, ours: str, theirs: str, place: int, plain: str) -> dict[str, str]:
    """One residual block with the attention that follows it, or one plain change of resolution."""
    if not isinstance(module, Block):
        return {ours: f"{theirs}.{place}.{plain}"}
    names = {f"{ours}.{our}": f"{theirs}.{place}.{their}" for our, their in BLOCK.items()}
    return names | {f"{ours}.attention.{our}": f"{theirs}.{place + 1}.{their}" for our, their in ATTENTION.items()}


def _assign(network: UNet, where: str, weights: Weights, order: Order) -> None:
    """Gives the network copies of these weights. Raises `UserError` unless they fit exactly."""
    modules, expected, names = names_of(network), {}, {}
    for name, tensor in network.state_dict().items():
        module, _, parameter = name.rpartition(".")
        names[name] = f"{modules[module]}.{parameter}"
        linear = isinstance(network.get_submodule(module.rpartition(".")[0]), Attention) and tensor.ndim == 2
        expected[names[name]] = tensor[:, :, None] if linear else tensor  # theirs are convolutions of width 1
    check_weights(where, expected, weights, "not a network of this layout, or not all of it")
    ours = {}
    for name, tensor in network.state_dict().items():
        theirs = exact(weights[names[name]]).view(tensor.shape)
        if ".qkv." in name and order == "legacy":
            heads = int(network.get_submodule(name.partition(".qkv")[0]).heads)  # type: ignore[arg-type]
            theirs = theirs.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2).contiguous()
        ours[name] = theirs
    network.load_state_dict(ours, assign=True)
