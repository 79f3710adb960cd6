"""A DiT with its autoencoder, written by the peer library, against the peer library's own modules."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from twofold import load
from twofold.adapters.latent_codec import LatentCodec
from twofold.denoiser import NetworkDenoiser
from twofold.errors import UserError
from twofold.generate import sample
from twofold.hashing import weights_hash

from . import peers

diffusers = pytest.importorskip("diffusers")
FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return peers.pipeline(tmp_path_factory.mktemp("dit") / "pipe", peers.transformer(), peers.autoencoder())


@pytest.fixture(scope="module")
def model(folder: Path) -> NetworkDenoiser:
    model = load(folder)
    assert isinstance(model, NetworkDenoiser)
    return model


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Any:
    return diffusers.DiTPipeline.from_pretrained(folder)


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "pipe"))


def peer_x(pipe: Any, x0: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The peer's x_t, and our x and sigma at these table times."""
    abar = pipe.scheduler.alphas_cumprod[t].double()
    x_t = pipe.scheduler.add_noise(x0, noise, t)
    return x_t, x_t / abar.sqrt().float()[:, None, None, None], ((1 - abar) / abar).sqrt()


def draw(batch: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 4, 8, 8, generator=generator), torch.randn(batch, 4, 8, 8, generator=generator)


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_facts(model: NetworkDenoiser) -> None:
    assert model.shape == (4, 8, 8) and model.classes == 3 and not model.clip and not model.training
    assert list(model.layers) == ["block.0", "block.1", "block.2"]
    assert model.aliases["layer-2"] == "block.2"
    assert {(layer.channels, layer.stride) for layer in model.layers.values()} == {(24, 2)}
    assert model.sigma_range == pytest.approx((0.0100005, 157.4072), rel=1e-4)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert isinstance(model.codec, LatentCodec) and model.codec.size == (16, 16)


def test_denoise_is_the_peers_noise_prediction(model: NetworkDenoiser, pipe: Any) -> None:
    """x0_hat = (x_t - sqrt(1 - abar) eps) / sqrt(abar), eps the first half of the peer's output; -1 its null class."""
    x0, noise = draw()
    t, labels = torch.tensor([0, 121, 999]), torch.tensor([2, -1, 0])
    x_t, x, sigma = peer_x(pipe, x0, noise, t)
    with torch.no_grad():
        output = pipe.transformer(x_t, timestep=t, class_labels=torch.where(labels < 0, 3, labels)).sample
        abar = pipe.scheduler.alphas_cumprod[t][:, None, None, None]
        expected = (x_t - (1 - abar).sqrt() * output[:, :4]) / abar.sqrt()
        found = model.denoise(x, sigma, {"label": labels})
        none = model.denoise(x, sigma)
    scale = expected.abs().amax((1, 2, 3), keepdim=True)
    assert float(((found - expected) / scale).abs().max()) < 1e-5
    assert torch.equal(none[1], found[1]) and not torch.allclose(none[0], found[0])


def test_a_ddim_step_is_the_schedulers(model: NetworkDenoiser, pipe: Any) -> None:
    x0, noise = draw(1)
    pipe.scheduler.set_timesteps(10)
    now, then = (int(t) for t in pipe.scheduler.timesteps[3:5])
    x_t, x, sigma = peer_x(pipe, x0, noise, torch.tensor([now]))
    with torch.no_grad():
        eps = pipe.transformer(x_t, timestep=torch.tensor([now]), class_labels=torch.tensor([1])).sample[:, :4]
        pipe.scheduler.config.clip_sample = False
        expected = pipe.scheduler.step(eps, now, x_t).prev_sample
        x0_hat = model.denoise(x, sigma, {"label": torch.tensor([1])})
    lower = model.family.sigma(then)
    ours = (x0_hat + (lower / sigma).float() * (x - x0_hat)) / (1 + lower**2).sqrt().float()
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_variance_is_the_learned_range_of_ddpm(model: NetworkDenoiser, pipe: Any) -> None:
    scheduler = diffusers.DDPMScheduler(beta_schedule="linear", variance_type="learned_range")
    x0, noise = draw()
    t = torch.tensor([2, 400, 999])
    x_t, x, sigma = peer_x(pipe, x0, noise, t)
    with torch.no_grad():
        learned = pipe.transformer(x_t, timestep=t, class_labels=torch.full((3,), 3)).sample[:, 4:]
        found = model.variance(x, sigma)
    for i in range(3):
        in_their_frame = scheduler._get_variance(int(t[i]), predicted_variance=learned[i])
        expected = in_their_frame.exp() / scheduler.alphas_cumprod[t[i] - 1]
        torch.testing.assert_close(found[i], expected, rtol=1e-3, atol=0)
    assert float(model.variance(x, model.sigma_range[0]).min()) > 0


def test_features_are_a_blocks_output_in_its_place(model: NetworkDenoiser, pipe: Any) -> None:
    seen: dict[int, Tensor] = {}
    for k, block in enumerate(pipe.transformer.transformer_blocks):
        block.register_forward_hook(lambda module, args, output, k=k: seen.update({k: output}))
    x0, noise = draw()
    t = torch.tensor([10, 200, 700])
    x_t, x, sigma = peer_x(pipe, x0, noise, t)
    with torch.no_grad():
        pipe.transformer(x_t, timestep=t, class_labels=torch.full((3,), 3))
        found = model.features(x, sigma, ["block.2", "layer-0"])
    assert {"block.0", "block.2", "layer-0"} <= set(found)
    for k in (0, 2):
        maps = found[f"block.{k}"]
        assert maps.shape == (3, 24, 4, 4)
        for row, column in ((0, 0), (1, 3), (3, 2)):  # tokens come row by row
            torch.testing.assert_close(maps[:, :, row, column], seen[k][:, 4 * row + column], rtol=1e-5, atol=1e-5)


def test_later_blocks_do_not_run(model: NetworkDenoiser) -> None:
    ran: list[str] = []
    handles = [
        layer.module.register_forward_pre_hook(lambda module, args, name=name: ran.append(name))
        for name, layer in model.layers.items()
    ]
    x, _ = draw()
    with torch.no_grad():
        early = model.features(x, 0.5, ["block.1"])
        assert ran == ["block.0", "block.1"]
        whole = model.features(x, 0.5, ["block.1", "block.2"])
    for handle in handles:
        handle.remove()
    assert torch.equal(early["block.1"], whole["block.1"])


def test_clean_images_and_wrong_names(model: NetworkDenoiser) -> None:
    x, _ = draw()
    with torch.no_grad():
        clean = model.features(x, 0.0, ["layer-1"])["layer-1"]
        tiny = model.features(x, model.sigma_range[0], ["layer-1"])["layer-1"]
    torch.testing.assert_close(clean, tiny, rtol=1e-2, atol=1e-3)  # as good as the smallest level, unscaled
    with pytest.raises(UserError, match="did you mean 'block.2'"):
        model.features(x, 0.5, ["block.3"])
    with pytest.raises(UserError, match="outside"):
        model.denoise(x, 1000.0)
    with pytest.raises(UserError, match="label 3: the network knows 3 classes"):
        model.denoise(x, 0.5, {"label": torch.tensor([0, 1, 3])})
    with pytest.raises(UserError, match="needs multiples of 2"):
        model.denoise(torch.randn(1, 4, 8, 7), 0.5)


def test_it_makes_images_and_takes_bfloat16(model: NetworkDenoiser) -> None:
    images = sample(model, seeds=2, label=1, steps=3, guidance=2.0)
    assert images.shape == (2, 3, 16, 16) and images.dtype == torch.uint8
    x, _ = draw()
    with torch.no_grad():
        exact = model.denoise(x, 0.5)
        model.autocast = torch.bfloat16
        rough = model.denoise(x, 0.5)
        model.autocast = None
    assert rough.dtype == torch.float32 and not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, rtol=0.1, atol=0.1)


def test_the_codec_belongs_to_the_denoiser(model: NetworkDenoiser, folder: Path) -> None:
    again = load(folder)
    assert weights_hash(again) == weights_hash(model)
    with torch.no_grad():
        again.codec.vae.decoder.conv_in.bias.add_(1)  # type: ignore[union-attr]
    assert weights_hash(again) != weights_hash(model)
    again.double()
    assert next(again.codec.vae.parameters()).dtype == torch.float64  # type: ignore[union-attr]


def test_names_come_from_the_pipeline(copied: Path) -> None:
    rewrite(copied / "model_index.json", id2label={str(k): name for k, name in peers.NAMES.items()})
    assert load(copied).class_names == ["tench, Tinca tinca", "goldfish", "shark"]
    rewrite(copied / "model_index.json", id2label={"0": "tench"})
    assert load(copied).class_names == []  # half of the names would name the wrong classes


def test_a_transformer_alone_reads_latents(folder: Path, model: NetworkDenoiser) -> None:
    alone = load(folder / "transformer")
    x, _ = draw()
    with torch.no_grad():
        assert torch.equal(alone.denoise(x, 0.5), model.denoise(x, 0.5))
        assert torch.equal(
            alone.features(x, 0.5, ["block.0"])["block.0"], model.features(x, 0.5, ["block.0"])["block.0"]
        )
    with pytest.raises(UserError, match="vae folder is needed"):
        alone.codec.encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(UserError, match="vae folder is needed"):
        sample(alone, seeds=1, steps=1)


def test_folders_of_early_versions(copied: Path) -> None:
    """The published folders say Transformer2DModel, with keys of other models that are null or false."""
    old = {"_class_name": "Transformer2DModel", "cross_attention_dim": None, "only_cross_attention": False}
    rewrite(copied / "transformer" / "config.json", **old)
    assert load(copied).shape == (4, 8, 8)
    rewrite(copied / "transformer" / "config.json", only_cross_attention=True)
    with pytest.raises(UserError, match="only_cross_attention=True: DiTTransformer2DModel has no such option"):
        load(copied)


def test_a_network_without_variance(tmp_path: Path) -> None:
    peers.transformer(out_channels=4, patch_size=4).save_pretrained(tmp_path)
    model = load(tmp_path)
    x, _ = draw()
    with torch.no_grad():
        assert model.denoise(x, 0.5).shape == x.shape
        assert model.features(x, 0.5, ["block.0"])["block.0"].shape == (3, 24, 2, 2)
    with pytest.raises(UserError, match="learned no variance"):
        model.variance(x, 0.5)  # type: ignore[union-attr]


def test_wrong_weights_are_named(copied: Path) -> None:
    file = copied / "transformer" / FILE
    whole = load_file(file)
    name = "transformer_blocks.1.attn1.to_q.weight"

    def refused(weights: dict[str, Tensor], message: str) -> None:
        save_file(weights, file)
        with pytest.raises(UserError, match=message):
            load(copied)

    refused({k: v for k, v in whole.items() if k != name}, f"1 missing: {name}")
    refused({**whole, "surprise": torch.zeros(1)}, "1 surplus: surprise")
    refused({**whole, name: torch.zeros(24, 23)}, r"to_q\.weight has shape \(24, 23\), not \(24, 24\)")
    file.write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot be read as weights"):
        load(copied)
    (file.parent / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    file.unlink()
    with pytest.raises(UserError, match="is a pickle and is not opened"):
        load(copied)


@pytest.mark.parametrize(
    "options",
    [
        {"attention_bias": False},
        {"patch_size": 4, "norm_eps": 1e-2},
        {"out_channels": 4, "num_layers": 1, "attention_head_dim": 4},
        {"sample_size": 6, "in_channels": 1, "out_channels": 2},
    ],
)
def test_the_network_is_the_peers(options: dict[str, Any], tmp_path: Path) -> None:
    """Random weights with an embedding of their own in each block, at the trained size and at another."""
    theirs = peers.transformer(**options)
    theirs.save_pretrained(tmp_path)
    network = load(tmp_path).network  # type: ignore[union-attr]
    channels, size = theirs.config.in_channels, theirs.config.sample_size
    t, labels = torch.tensor([3.0, 777.0]), torch.tensor([2, 0])
    for side in (size, 2 * size):
        x = torch.randn(2, channels, side, side)
        with torch.no_grad():
            expected = theirs(x, timestep=t, class_labels=labels).sample
            torch.testing.assert_close(network(x, t, {"label": labels}), expected, rtol=1e-4, atol=1e-5)


def test_equal_embeddings_become_one(tmp_path: Path) -> None:
    theirs = peers.transformer()
    theirs.save_pretrained(tmp_path / "each")
    for block in theirs.transformer_blocks:
        block.norm1.emb.load_state_dict(theirs.transformer_blocks[0].norm1.emb.state_dict())
    theirs.save_pretrained(tmp_path / "one")
    each, one = load(tmp_path / "each").network, load(tmp_path / "one").network  # type: ignore[union-attr]
    assert len(each.embedders) == 3 and len(one.embedders) == 1
    assert one.settings.embedders == "shared"
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([50.0])
    with torch.no_grad():
        expected = theirs(x, timestep=t, class_labels=torch.tensor([1])).sample
        torch.testing.assert_close(one(x, t, {"label": torch.tensor([1])}), expected, rtol=1e-4, atol=1e-5)


def test_shards_are_read_together(folder: Path, model: NetworkDenoiser, tmp_path: Path, pipe: Any) -> None:
    pipe.transformer.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert weights_hash(load(tmp_path).network) == weights_hash(model.network)  # type: ignore[union-attr]
    next(tmp_path.glob("*00002*.safetensors")).unlink()
    with pytest.raises(UserError, match="no diffusion_pytorch_model-00002.* here"):
        load(tmp_path)


def change_index(folder: Path) -> None:
    rewrite(folder / "model_index.json", _class_name="StableDiffusionPipeline")


def change_vae(folder: Path) -> None:
    rewrite(folder / "vae" / "config.json", _class_name="VQModel")


def change_transformer(folder: Path) -> None:
    rewrite(folder / "transformer" / "config.json", _class_name="SanaTransformer2DModel")


def lose_vae(folder: Path) -> None:
    shutil.rmtree(folder / "vae")


def change_outputs(folder: Path) -> None:
    peers.transformer(out_channels=6).save_pretrained(folder / "transformer")


def change_latents(folder: Path) -> None:
    peers.autoencoder(latent_channels=8).save_pretrained(folder / "vae")


def change_schedule(folder: Path) -> None:
    rewrite(folder / "scheduler" / "scheduler_config.json", beta_end=0.5)


def change_norm(folder: Path) -> None:
    rewrite(folder / "transformer" / "config.json", norm_type="layer_norm")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_index, "StableDiffusionPipeline: no adapter reads this class; valid: DDPMPipeline.*DiTPipeline"),
        (change_vae, "VQModel: .*valid: AutoencoderKL"),
        (change_transformer, "SanaTransformer2DModel: .*valid: DiTTransformer2DModel"),
        (lose_vae, "vae: no config.json here"),
        (change_outputs, "out_channels=6: neither noise nor noise and variance"),
        (change_latents, "3 -> 8 -> 3 channels; the transformer needs 3 -> 4 -> 3"),
        (change_schedule, "beta_end=0.5"),
        (change_norm, "norm_type=layer_norm: twofold's dit has no such option; valid: ada_norm_zero"),
    ],
)
def test_what_cannot_be_run_is_named(copied: Path, change: Callable[[Path], None], message: str) -> None:
    change(copied)
    with pytest.raises(UserError, match=message):
        load(copied)


def test_other_models_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "FluxTransformer2DModel"}))
    with pytest.raises(UserError, match="FluxTransformer2DModel: no adapter reads this class; valid: .*UNet2DModel"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["ViTModel"]}))
    with pytest.raises(UserError, match="no _class_name"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("kind", "options", "outputs"),
    [
        ("DDPMPipeline", {}, 3),
        (
            "DDIMPipeline",
            {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4, "downsample_padding": 0},
            3,
        ),
        ("DDPMPipeline", {"out_channels": 6}, 6),
    ],
    ids=["ddpm", "ddim", "learned-variance"],
)
def test_unets_written_by_the_peer(tmp_path: Path, kind: str, options: dict[str, Any], outputs: int) -> None:
    theirs = peers.unet(**options)
    scheduler = getattr(diffusers, kind.replace("Pipeline", "Scheduler"))(clip_sample=False)
    getattr(diffusers, kind)(theirs, scheduler).save_pretrained(tmp_path)
    t = torch.tensor([3, 500])
    x0, noise = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16)
    abar = scheduler.alphas_cumprod[t][:, None, None, None]
    x_t = abar.sqrt() * x0 + (1 - abar).sqrt() * noise
    with torch.no_grad():
        output = theirs(x_t, t).sample
        expected = (x_t - (1 - abar).sqrt() * output[:, :3]) / abar.sqrt()
        for folder in (tmp_path, tmp_path / "unet"):
            model = load(folder)
            assert isinstance(model, NetworkDenoiser)
            found = model.denoise(x_t / abar.sqrt(), ((1 - abar) / abar).sqrt().flatten())
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert output.shape[1] == outputs


def test_a_unet_of_classes_and_one_of_class_vectors(tmp_path: Path) -> None:
    theirs = peers.unet(num_class_embeds=4)
    theirs.save_pretrained(tmp_path / "classes")
    model = load(tmp_path / "classes")
    x, t, labels = torch.randn(2, 3, 16, 16), torch.tensor([5, 600]), torch.tensor([3, 0])
    with torch.no_grad():
        expected = theirs(x, t, class_labels=labels).sample
        torch.testing.assert_close(model.network(x, t.float(), {"label": labels}), expected, rtol=1e-4, atol=1e-5)  # type: ignore[union-attr]
    assert model.classes == 4
    peers.unet(class_embed_type="timestep").save_pretrained(tmp_path / "vectors")
    with pytest.raises(UserError, match="class_embed_type=timestep"):
        load(tmp_path / "vectors")
