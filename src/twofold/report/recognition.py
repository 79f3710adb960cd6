"""The figures of recognition: where features are good, how few labels suffice, how both change over training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .figures import BLUE, INK, ORANGE, drawn, png_of
from .grids import short_count

MOST_NUMBERED = 120  # cells of a heat map that carry their number


def heat_map(cells: Sequence[Mapping[str, Any]], chosen: tuple[str, float]) -> bytes | None:
    """Validation accuracy of every layer (rows, in order of execution) at every noise level (columns); the chosen one
    is framed. cells: {places: [[layer, sigma]], validation}. None where there are fewer than two."""
    places = [tuple(cell["places"][0]) for cell in cells]
    if len(places) < 2:
        return None
    layers, sigmas = list(dict.fromkeys(p[0] for p in places)), sorted({p[1] for p in places})
    table = np.full((len(layers), len(sigmas)), np.nan)
    for (layer, sigma), cell in zip(places, cells, strict=True):
        table[layers.index(layer), sigmas.index(sigma)] = 100 * cell["validation"]
    numbered = table.size <= MOST_NUMBERED
    with drawn() as figure_of:
        figure = figure_of(4.4, 1.1 + 0.27 * len(layers))
        axis = figure.subplots()
        low = np.nanpercentile(table, 10)  # a few bad corners would wash out the rest
        shown = axis.imshow(table, aspect="auto", cmap="cividis", vmin=low, vmax=np.nanmax(table))
        axis.set_xticks(range(len(sigmas)), [f"{sigma:g}" for sigma in sigmas])
        axis.set_yticks(range(len(layers)), layers)
        axis.set_xlabel("noise level sigma")
        axis.grid(visible=False)
        axis.tick_params(length=0)
        for edge in axis.spines.values():
            edge.set_visible(False)
        if numbered:
            middle = (low + np.nanmax(table)) / 2
            for (row, column), value in np.ndenumerate(table):
                ink = "#101010" if value > middle else "#f4f4f4"
                axis.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=8, color=ink)
        from matplotlib.patches import Rectangle

        row, column = layers.index(chosen[0]), sigmas.index(chosen[1])
        axis.add_patch(Rectangle((column - 0.47, row - 0.45), 0.94, 0.9, fill=False, edgecolor=ORANGE, linewidth=2))
        bar = figure.colorbar(shown, ax=axis, pad=0.02, extend="min")
        bar.set_label("validation accuracy (%)")
        bar.outline.set_visible(False)
        return png_of(figure)


def label_curve(rows: Sequence[Mapping[str, Any]]) -> bytes | None:
    """Test accuracy over labelled images of each class, with 95 % intervals, beside raw pixels. rows: {k, accuracy,
    interval, raw, raw_interval}. None for fewer than two."""
    if len(rows) < 2:
        return None
    k = [row["k"] for row in rows]
    with drawn() as figure_of:
        figure = figure_of(4.4, 2.8)
        axis = figure.subplots()
        for key, name, colour, line, mark in (
            ("accuracy", "diffusion features", BLUE, "-", "o"),
            ("raw", "raw pixels", ORANGE, "--", "s"),
        ):
            if key not in rows[0]:
                continue
            interval = "interval" if key == "accuracy" else "raw_interval"
            low, high = ([100 * row[interval][side] for row in rows] for side in (0, 1))
            axis.plot(k, [100 * row[key] for row in rows], line, color=colour, marker=mark, markersize=4, label=name)
            axis.fill_between(k, low, high, color=colour, alpha=0.18, linewidth=0)
        axis.set_xscale("log")
        axis.set_xticks(k, ["all" if row.get("all") else f"{row['k']:,}" for row in rows])
        axis.minorticks_off()
        axis.set_xlabel("labelled images of each class")
        axis.set_ylabel("test accuracy (%)")
        axis.legend(loc="lower right")
        return png_of(figure)


def training_curves(rows: Sequence[Mapping[str, Any]]) -> bytes | None:
    """Best probe accuracy, Frechet distance, alignment and uniformity over training, one panel each, of what there is.

    rows: {n_images, accuracy, frechet, layer, sigma, contrastive}; alignment and uniformity are those of the layer and
    noise level that are best in the last row. None for fewer than two rows.
    """
    if len(rows) < 2:
        return None
    panels = {"accuracy (%)": [100 * row["accuracy"] for row in rows]}
    if any(row.get("frechet") is not None for row in rows):
        panels["Fréchet distance"] = [np.nan if row.get("frechet") is None else row["frechet"] for row in rows]
    if all(row.get("contrastive") for row in rows):
        place = (rows[-1]["layer"], rows[-1]["sigma"])
        for name in ("alignment", "uniformity"):
            panels[name] = [
                next(one[name] for one in row["contrastive"] if (one["layer"], one["sigma"]) == place) for row in rows
            ]
    n = [row["n_images"] for row in rows]
    with drawn() as figure_of:
        figure = figure_of(4.4, 0.6 + 1.3 * len(panels))
        axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        for axis, (name, values) in zip(axes, panels.items(), strict=True):
            axis.plot(n, values, color=BLUE if "accuracy" in name else INK, marker="o", markersize=4)
            best = np.nanargmax(values) if "accuracy" in name else np.nanargmin(values)
            axis.plot(n[best], values[best], color=ORANGE, marker="o", markersize=7, linestyle="none")
            axis.set_ylabel(name)
        axes[-1].set_xlabel("images seen in training")
        axes[-1].xaxis.set_major_formatter(lambda value, _: short_count(round(value)))
        figure.align_ylabels()
        return png_of(figure)


def noise_curves(classifiers: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """Accuracy of classifiers, by name, over the noise level of the images, with 95 % intervals; the clean image stands
    at the left edge. Rows {sigma, accuracy, low, high}, as `recognize.noise_curve` gives them."""
    positive = [row["sigma"] for rows in classifiers.values() for row in rows if row["sigma"] > 0]
    clean = min(positive, default=1.0) / 2
    colours, lines = (BLUE, ORANGE, INK), ("-", "--", ":")
    with drawn() as figure_of:
        figure = figure_of(4.4, 2.8)
        axis = figure.subplots()
        for i, (name, rows) in enumerate(classifiers.items()):
            sigmas = [row["sigma"] or clean for row in rows]
            colour, line = colours[i % 3], lines[i // 3 % 3]
            axis.plot(
                sigmas, [100 * r["accuracy"] for r in rows], line, color=colour, marker="o", markersize=3, label=name
            )
            low, high = ([100 * row[side] for row in rows] for side in ("low", "high"))
            axis.fill_between(sigmas, low, high, color=colour, alpha=0.18, linewidth=0)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_xlabel("noise level sigma")
        axis.set_ylabel("accuracy (%)")
        if len(classifiers) > 1:
            axis.legend(loc="upper right")
        return png_of(figure)


def pictures(found: Mapping[str, Any]) -> dict[str, bytes | None]:
    """The figures a probe's result has data for."""
    return {
        "features": heat_map(found["cells"], tuple(found["results"]["one layer"]["places"][0])),
        "labels": label_curve(found["labels_per_class"]),
        "training": training_curves(found["over_training"]),
    }


def table(found: Mapping[str, Any]) -> dict[str, Any]:
    """What a probe found, as the page shows it: {summary, rows, labels, finding, notes}, all in words."""
    results, images = found["results"], found["images"]
    chosen = results[found["winner"]]
    rows = [
        {
            "name": name[0].upper() + name[1:],
            "accuracy": percent(row["accuracy"]),
            "interval": f"{percent(row['interval'][0])} to {percent(row['interval'][1])}",
            "where": places_text(row.get("places", [])),
        }
        for name, row in results.items()
    ]
    zero = found.get("zero_shot")
    if zero:
        where = f"{zero['images']} images; the head on features agrees on {percent(zero['agreement'])}"
        low, high = (percent(value) for value in zero["interval"])
        rows.append({"name": "Zero-shot", "accuracy": percent(zero["accuracy"]), "interval": f"{low} to {high}"})
        rows[-1]["where"] = where
    return {
        "summary": f"Without training it again, the denoiser tells {len(found['classes'])} classes apart: "
        f"{percent(chosen['accuracy'])} of {images['test']:,} test images, by a head on {images['train']:,} "
        f"labelled training images, chosen on {images['validation']:,} validation images. Averaged over noise draws: "
        f"{percent(chosen['averaged'])}.",
        "rows": rows,
        "labels": [_few_row(row) for row in found["labels_per_class"]],
        "finding": [
            {**answer, "answer": {True: "yes", False: "no", None: "unknown"}[answer["holds"]]}
            for answer in found["finding"]
        ],
        "contrastive": [
            {"name": row["layer"], "alignment": f"{row['alignment']:.3g}", "uniformity": f"{row['uniformity']:.3g}"}
            for row in found["contrastive"]
            if row["sigma"] == results["one layer"]["places"][0][1]
        ],
        "sigma": f"{results['one layer']['places'][0][1]:g}",
        "notes": found["warnings"],
    }


def _few_row(row: Mapping[str, Any]) -> dict[str, str]:
    half = lambda interval: 50 * (interval[1] - interval[0])  # noqa: E731
    return {
        "name": f"all ({row['k']:,} per class)" if row.get("all") else f"{row['k']:,} per class",
        "accuracy": f"{percent(row['accuracy'])} ± {half(row['interval']):.1f}",
        "raw": f"{percent(row['raw'])} ± {half(row['raw_interval']):.1f}" if "raw" in row else "",
        "where": places_text(row["places"]),
    }


def places_text(places: Sequence[Any]) -> str:
    """`dec.2 at sigma 0.1 + mid at sigma 0.2`."""
    return " + ".join(f"{layer} at sigma {sigma:g}" for layer, sigma in places)


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"
