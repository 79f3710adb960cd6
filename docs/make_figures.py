"""Makes the figures of docs/concepts from trained runs, on real images.

    python docs/make_figures.py --joint RUN --digits RUN --unlabelled RUN --autoencoder RUN --data FOLDER

joint, digits: runs of the presets joint-digits-mini and digits. unlabelled: a run or file of ddae-cifar10-edm-mini,
which has seen no label (its snapshot at 102,400 images reads best). autoencoder: one of autoencoder-mini on
Fashion-MNIST, whose Parquet files lie in FOLDER. Writes docs/figures/concept-*.png, of these runs, with seed 0.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

import twofold
from twofold.data import open_store
from twofold.settings.data import DataSettings

HERE = Path(__file__).with_name("figures")
GREY = "#808080"
SIGMAS = (0.0, 0.1, 0.3, 0.6, 1.0, 2.0, 5.0)


def panel(rows: int, columns: int, side: float = 1.0, left: float = 1.1) -> tuple[Figure, Any]:
    """A figure of square pictures without axes; room for words on the left."""
    figure = Figure(figsize=(left + side * columns, side * rows + 0.3), dpi=110)
    axes = figure.subplots(rows, columns, squeeze=False)
    start = left / (left + side * columns)
    figure.subplots_adjust(start, 0.02, 0.995, 1 - 0.32 / (side * rows + 0.3), 0.05, 0.05)
    for axis in axes.flat:
        axis.axis("off")
    return figure, axes


def show(axis: Any, image: Any, title: str = "", low: float = -1.0, high: float = 1.0, colours: str = "gray") -> None:
    axis.imshow(np.asarray(image), cmap=colours, vmin=low, vmax=high, interpolation="nearest")
    if title:
        axis.set_title(title, fontsize=9, color=GREY, pad=3)


def say(axis: Any, text: str) -> None:
    """Words left of a row."""
    axis.text(-0.12, 0.5, text, transform=axis.transAxes, ha="right", va="center", fontsize=9, color=GREY)


def save(figure: Figure, name: str) -> None:
    file = io.BytesIO()
    figure.savefig(file, format="png", transparent=True)
    path = HERE / f"concept-{name}.png"
    path.write_bytes(file.getvalue())
    print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")


def noise_like(x0: torch.Tensor) -> torch.Tensor:
    return torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))


def noise(model: Any, x0: torch.Tensor) -> None:
    """One image with more and more noise, and the mean of all images it may have been."""
    figure, axes = panel(2, len(SIGMAS))
    for column, sigma in enumerate(SIGMAS):
        x = x0[:1] + sigma * noise_like(x0[:1])
        show(axes[0, column], x[0, 0], f"sigma {sigma:g}", *((-1, 1) if sigma < 1 else (-1 - sigma, 1 + sigma)))
        show(axes[1, column], model.denoise(x, max(sigma, model.sigma_range[0]))[0, 0])
    say(axes[0, 0], "x = x0 +\nsigma * noise")
    say(axes[1, 0], "x0_hat")
    save(figure, "noise")


def features(model: Any, x0: torch.Tensor) -> None:
    """What three channels of each layer show of a few images."""
    layers = [name for name in model.layers if name.startswith(("enc", "mid", "dec"))]
    chosen = layers[:: max(1, len(layers) // 6)]
    maps = model.features(x0[:3] + 0.05 * noise_like(x0[:3]), 0.05, chosen)
    figure, axes = panel(3, len(chosen) + 1, left=0.4)
    for row in range(3):
        show(axes[row, 0], x0[row, 0], "x0" if row == 0 else "")
        for column, name in enumerate(chosen, 1):
            colours = principal(maps[name])[row]
            show(axes[row, column], colours, name if row == 0 else "")
    save(figure, "features")


def principal(maps: torch.Tensor) -> np.ndarray:
    """(B, D, h, w) -> (B, h, w, 3) in 0..1: the first three principal components as red, green and blue."""
    flat = maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1]).double()
    flat = flat - flat.mean(0)
    parts = flat @ torch.linalg.svd(flat, full_matrices=False)[2][:3].T
    low, high = parts.quantile(0.02, 0), parts.quantile(0.98, 0)
    shown = ((parts - low) / (high - low).clamp(min=1e-9)).clamp(0, 1)
    return shown.reshape(maps.shape[0], *maps.shape[2:], 3).numpy()


def layers_and_levels(model: Any, x0: torch.Tensor, y: torch.Tensor, test: tuple[Any, Any]) -> None:
    """Accuracy of ridge regression on the means of each layer's map, at each noise level."""
    names, sigmas = list(model.layers), (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
    table = np.zeros((len(names), len(sigmas)))
    for column, sigma in enumerate(sigmas):
        read = [pooled(model, x, sigma, names) for x in (x0, test[0])]
        for row, name in enumerate(names):
            table[row, column] = ridge(read[0][name], y, read[1][name], test[1])
    figure = Figure(figsize=(6.4, 0.32 * len(names) + 1.1), dpi=110)
    axis = figure.subplots()
    axis.imshow(100 * table, cmap="viridis", aspect="auto")
    for row in range(len(names)):
        for column in range(len(sigmas)):
            value = table[row, column]
            colour = "black" if value > (table.min() + table.max()) / 2 else "white"
            axis.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=8, color=colour)
    axis.set_xticks(range(len(sigmas)), [f"{sigma:g}" for sigma in sigmas], color=GREY)
    axis.set_yticks(range(len(names)), names, color=GREY)
    axis.set_xlabel("sigma", color=GREY)
    axis.set_title("test accuracy of a linear head, %", color=GREY, fontsize=10)
    figure.tight_layout()
    save(figure, "layers-and-levels")


def pooled(model: Any, x0: torch.Tensor, sigma: float, names: list[str]) -> dict[str, torch.Tensor]:
    maps = model.features(x0 + sigma * noise_like(x0), sigma, names)
    return {name: values.mean((2, 3)).double() for name, values in maps.items()}


def ridge(train: torch.Tensor, y: torch.Tensor, test: torch.Tensor, truth: torch.Tensor) -> float:
    mean, std = train.mean(0), train.std(0) + 1e-6
    a, b = ((v - mean) / std for v in (train, test))
    a, b = (torch.cat([v, torch.ones(len(v), 1, dtype=v.dtype)], 1) for v in (a, b))
    targets = torch.nn.functional.one_hot(y).double()
    weights = torch.linalg.solve(a.T @ a + 1e-2 * len(a) * torch.eye(a.shape[1], dtype=a.dtype), a.T @ targets)
    return float(((b @ weights).argmax(1) == truth).double().mean())


def guidance(model: Any) -> None:
    """The same seeds at rising scales, a class a column."""
    scales = (0.0, 1.0, 2.0, 4.0)
    figure, axes = panel(len(scales), 10, 0.62)
    for row, scale in enumerate(scales):
        images = twofold.sample(model, seeds=range(10), label=list(range(10)), guidance=scale)
        for column in range(10):
            show(axes[row, column], images[column, 0], str(column) if row == 0 else "", 0, 255)
        say(axes[row, 0], f"guidance {scale:g}")
    save(figure, "guidance")


def joint(model: Any, x0: torch.Tensor, y: torch.Tensor) -> None:
    """What the head of a joint model answers as noise grows."""
    sigmas = np.geomspace(0.02, 10, 22)
    figure = Figure(figsize=(6.4, 3.0), dpi=110)
    axis = figure.subplots()
    rows = []
    for sigma in sigmas:
        logits = model.logits(x0 + float(sigma) * noise_like(x0), float(sigma))
        rows.append(logits.softmax(1).gather(1, y[:, None])[:, 0].numpy())
    table = np.stack(rows)
    axis.fill_between(sigmas, *np.quantile(table, (0.1, 0.9), axis=1), alpha=0.25, color="tab:blue", lw=0)
    axis.plot(sigmas, table.mean(1), color="tab:blue", label="probability of the right class")
    error = [float((model.denoise(x0 + float(s) * noise_like(x0), float(s)) - x0).square().mean()) for s in sigmas]
    axis.plot(
        sigmas, np.array(error) / error[-1], color="tab:orange", label="denoising error, as a share of its largest"
    )
    axis.set_xscale("log")
    axis.set_xlabel("sigma", color=GREY)
    axis.tick_params(colors=GREY)
    axis.legend(frameon=False, labelcolor=GREY, fontsize=9)
    for side in axis.spines.values():
        side.set_color(GREY)
    figure.tight_layout()
    save(figure, "joint")


def latents(codec: Any, images: torch.Tensor) -> None:
    """Images, the channels of their latents, and what comes back."""
    z = codec.encode(images)
    back = codec.decode(z)
    figure, axes = panel(3, z.shape[1] + 2, left=0.3)
    for row in range(3):
        show(axes[row, 0], images[row, 0], "image" if row == 0 else "", 0, 255)
        for channel in range(z.shape[1]):
            show(axes[row, channel + 1], z[row, channel], f"z {channel}" if row == 0 else "", -3, 3, "coolwarm")
        show(axes[row, -1], back[row, 0], "decoded" if row == 0 else "", 0, 255)
    save(figure, "latents")


def few_labels(model: Any, x0: torch.Tensor, y: torch.Tensor) -> None:
    """Features of all images in two dimensions: two labels of each class, and what spreads from them."""
    from sklearn.manifold import TSNE

    from twofold.recognize.learners import Propagation

    features = torch.cat(list(pooled(model, x0, 0.1, ["mid", "dec.0", "dec.1"]).values()), 1)
    features = (features - features.mean(0)) / features.std(0)
    known = torch.full_like(y, -1)
    for k in range(10):
        known[(y == k).nonzero()[:2, 0]] = k
    found = Propagation()(features.float(), known, 10).probabilities.argmax(1)
    places = TSNE(random_state=0, perplexity=30).fit_transform(features.numpy())
    figure = Figure(figsize=(7.2, 3.6), dpi=110)
    for axis, labels, title in zip(
        figure.subplots(1, 2), (known, found), ("two labels of each class", "what spreads from them"), strict=True
    ):
        axis.scatter(*places[labels.numpy() < 0].T, s=3, color=GREY, alpha=0.3, lw=0)
        shown = labels.numpy() >= 0
        size = 46 if title.startswith("two") else 5
        axis.scatter(*places[shown].T, s=size, c=labels.numpy()[shown], cmap="tab10", vmin=0, vmax=9, lw=0)
        right = (found == y)[known < 0].double().mean() * 100
        axis.set_title(title if size > 9 else f"{title}: {right:.0f} % right", color=GREY, fontsize=10)
        axis.axis("off")
    figure.tight_layout()
    save(figure, "few-labels")


def distillation(model: Any, x0: torch.Tensor) -> None:
    """What a teacher has to say of the same images at several levels: its middle, three colours of it."""
    sigmas = (0.02, 0.1, 0.3, 1.0, 3.0)
    figure, axes = panel(4, len(sigmas) + 1, left=0.4)
    maps = [model.features(x0[:4] + s * noise_like(x0[:4]), s, ["dec.1"])["dec.1"] for s in sigmas]
    for row in range(4):
        show(axes[row, 0], x0[row, 0], "x0" if row == 0 else "")
        for column, sigma in enumerate(sigmas, 1):
            show(axes[row, column], principal(maps[column - 1])[row], f"sigma {sigma:g}" if row == 0 else "")
    save(figure, "distillation")


def seeds(model: Any) -> None:
    """One seed a column: samplers and numbers of steps change little, another batch nothing."""
    rows: list[tuple[str, dict[str, Any]]] = [
        ("dpmpp2m, 20", {}),
        ("the same, one\nat a time", {"micro_batch": 1}),
        ("unipc, 15", {"sampler": "unipc", "steps": 15}),
        ("ddim, 100", {"sampler": "ddim", "steps": 100}),
        ("ddpm, 250\n(fresh noise)", {"sampler": "ddpm", "steps": 250}),
    ]
    figure, axes = panel(len(rows), 10, 0.62, 1.3)
    for row, (title, options) in enumerate(rows):
        images = twofold.sample(model, seeds=range(10), label=7, **options)
        for column in range(10):
            show(axes[row, column], images[column, 0], f"seed {column}" if row == 0 else "", 0, 255)
        say(axes[row, 0], title)
    save(figure, "seeds")


def digits() -> tuple[Any, Any, Any, Any]:
    """Images and labels of the training and of the test part."""
    store = open_store(DataSettings(source="digits"))
    parts = [store.indices(name) for name in ("train", "test")]
    images, labels = zip(
        *((store.batch(rows), torch.as_tensor(np.asarray(store.labels[rows]))) for rows in parts), strict=True
    )
    return images[0], labels[0].long(), images[1], labels[1].long()


def run(joint_run: str, digits_run: str, reader_run: str, autoencoder: str | None, data: str | None) -> None:
    HERE.mkdir(exist_ok=True)
    train, y, test, truth = digits()
    both, plain, reader = (twofold.load(name) for name in (joint_run, digits_run, reader_run))
    x0, held = (plain.codec.encode(images) for images in (train, test))
    with torch.inference_mode():
        noise(plain, held[3:])
        features(reader, held[[3, 4, 8]])
        layers_and_levels(reader, x0, y, (held, truth))
        joint(both, held, truth)
        distillation(reader, held[[3, 4, 8, 11]])
        few_labels(reader, x0, y)
        if autoencoder is not None and data is not None:
            store = open_store(DataSettings(source=data))
            latents(twofold.load(autoencoder), store.batch(store.indices("test")[:3]))
    guidance(plain)
    seeds(plain)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--joint", required=True, help="a run of joint-digits-mini")
    parser.add_argument("--digits", required=True, help="a run of digits")
    parser.add_argument("--unlabelled", required=True, help="a run or a file of ddae-cifar10-edm-mini")
    parser.add_argument("--autoencoder", help="a run of autoencoder-mini")
    parser.add_argument("--data", help="folder with the Parquet files of Fashion-MNIST")
    given = parser.parse_args()
    run(given.joint, given.digits, given.unlabelled, given.autoencoder, given.data)
