"""What the parts of a DiT are called where others wrote it: in the published files, and by diffusers.

diffusers keeps one embedding of noise level and label for each block. In weights that were converted to its layout they
are copies of one, and are read as one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..networks.dit import DiT
from ..settings.network import DiTSettings
from .checkpoint_facts import exact
from .diffusers_files import check_weights

Names = dict[str, tuple[str, ...]]  # our module -> theirs; where theirs are several, ours is their concatenation
POSITIONS = ("pos_embed", "pos_embed.pos_embed")  # tables that are computed here
PUBLISHED: Names = {
    "stem": ("x_embedder.proj",),
    "embedders.0.first": ("t_embedder.mlp.0",),
    "embedders.0.second": ("t_embedder.mlp.2",),
    "embedders.0.label": ("y_embedder.embedding_table",),
    "head.modulation": ("final_layer.adaLN_modulation.1",),
    "head.out": ("final_layer.linear",),
}
PUBLISHED_BLOCK: Names = {
    "attention.qkv": ("attn.qkv",),
    "attention.proj": ("attn.proj",),
    "fc1": ("mlp.fc1",),
    "fc2": ("mlp.fc2",),
    "modulation": ("adaLN_modulation.1",),
}
DIFFUSERS: Names = {"stem": ("pos_embed.proj",), "head.modulation": ("proj_out_1",), "head.out": ("proj_out_2",)}
DIFFUSERS_BLOCK: Names = {
    "attention.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attention.proj": ("attn1.to_out.0",),
    "fc1": ("ff.net.0.proj",),
    "fc2": ("ff.net.2",),
    "modulation": ("norm1.linear",),
}
DIFFUSERS_EMBEDDER: Names = {
    "first": ("timestep_embedder.linear_1",),
    "second": ("timestep_embedder.linear_2",),
    "label": ("class_embedder.embedding_table",),
}


def published_names(depth: int) -> Names:
    """{our module: theirs} in the files of Peebles and Xie."""
    return PUBLISHED | _each("blocks.{}.", PUBLISHED_BLOCK, "blocks.{}.", depth)


def diffusers_names(depth: int) -> Names:
    """{our module: theirs} in DiTTransformer2DModel."""
    blocks = _each("blocks.{}.", DIFFUSERS_BLOCK, "transformer_blocks.{}.", depth)
    return DIFFUSERS | blocks | _each("embedders.{}.", DIFFUSERS_EMBEDDER, "transformer_blocks.{}.norm1.emb.", depth)


def _each(ours: str, names: Names, theirs: str, depth: int) -> Names:
    return {
        ours.format(k) + our: tuple(theirs.format(k) + name for name in some)
        for k in range(depth)
        for our, some in names.items()
    }


def assembled(
    where: str,
    settings: DiTSettings,
    shape: tuple[int, int, int],
    names: Names,
    weights: Mapping[str, Tensor],
    hint: str = "config and weights disagree",
) -> DiT:
    """The network of these settings with copies of these weights, float32 or better.

    Raises `UserError` naming weights that are missing, too many or of another shape.
    """
    weights = {name: tensor for name, tensor in weights.items() if name not in POSITIONS}
    with torch.device("meta"):
        network = DiT(settings, shape)
    sources: dict[str, list[str]] = {}
    expected: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        module, _, parameter = name.rpartition(".")
        sources[name] = [f"{their}.{parameter}" for their in names[module]]
        expected |= dict(zip(sources[name], tensor.chunk(len(sources[name])), strict=True))
    check_weights(where, expected, weights, hint)
    ours = {name: exact(torch.cat([weights[their] for their in some])) for name, some in sources.items()}
    network.load_state_dict(ours, assign=True)
    return network


def with_one_embedder(network: DiT) -> DiT:
    """The same network with one embedder, if its embedders are all equal; else itself."""
    first, *others = (embedder.state_dict() for embedder in network.embedders)
    if not all(torch.equal(first[name], other[name]) for other in others for name in first):
        return network
    with torch.device("meta"):
        made = DiT(network.settings.model_copy(update={"embedders": "shared"}), network.shape)
    kept = made.state_dict()
    made.load_state_dict({n: t for n, t in network.state_dict().items() if n in kept}, assign=True)
    return made
