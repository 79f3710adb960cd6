"""Small models with random weights, made and written by the peer library itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

NAMES = {0: "tench, Tinca tinca", 1: "goldfish", 2: "shark"}


def autoencoder(**options: Any) -> Any:
    """3 x 16 x 16 -> 4 x 8 x 8."""
    from diffusers import AutoencoderKL

    torch.manual_seed(1)
    return AutoencoderKL(
        **{
            "block_out_channels": (8, 16),
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "norm_num_groups": 4,
            **options,
        }
    ).eval()


def transformer(seed: int = 2, **options: Any) -> Any:
    """4 x 8 x 8 in patches of 2: 16 tokens of width 24, three blocks, three classes and none."""
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(seed)
    return DiTTransformer2DModel(
        **{
            "num_attention_heads": 3,
            "attention_head_dim": 8,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 3,
            "sample_size": 8,
            "patch_size": 2,
            "num_embeds_ada_norm": 3,
            **options,
        }
    ).eval()


def pipeline(folder: Path, transformer: Any, vae: Any, names: dict[int, str] | None = None) -> Path:
    """The folder of a DiTPipeline with a DDIM scheduler of DiT's table."""
    from diffusers import DDIMScheduler, DiTPipeline

    scheduler = DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    DiTPipeline(transformer, vae, scheduler, id2label=names).save_pretrained(folder)
    return folder


def unet(**options: Any) -> Any:
    """3 x 16 x 16 with attention at 8 x 8."""
    from diffusers import UNet2DModel

    torch.manual_seed(3)
    return UNet2DModel(
        **{
            "sample_size": 16,
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            "norm_num_groups": 4,
            "attention_head_dim": 8,
            **options,
        }
    ).eval()
