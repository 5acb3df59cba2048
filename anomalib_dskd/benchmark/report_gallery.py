# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""The same test images through every model, the worst mistakes first."""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib import colormaps
from PIL import Image
from scipy.ndimage import binary_dilation
from sklearn.metrics import precision_recall_curve

from .report_cells import Results, read_arrays
from .report_document import Gallery, Strip, Tile

SIDE = 176
OF_FIRST = 4
OF_OTHERS = 1
MOST = 14
RARE = 0.999  # share of pixels of normal test images below the middle of the colours
OPACITY = 0.8
OUTLINE = (0, 229, 255)
JPEG_QUALITY = 80


class Choice(NamedTuple):
    """A test image of the gallery.

    Args:
        category: Its category.
        path: Its path as in ``scores.csv``.
        reason: Why it is shown.
    """

    category: str
    path: str
    reason: str


def gallery(results: Results, data: str, models: list[str]) -> Gallery | None:
    """Show a data set's worst misses and false alarms.

    Args:
        results: Cells and their scores.
        data: Name of the data set.
        models: Models in order; the mistakes of the first come first.

    Returns:
        The gallery, or nothing where no cell has heat maps. Each model is shown with its first finished seed.
    """
    cells = results.with_scores(data)
    cells = cells[[(folder / "maps.npz").is_file() for folder in cells["folder"]]]
    cells = cells.drop_duplicates(["category", "model"])
    if cells.empty:
        return None
    judged = {(cell.category, cell.model): judge(results.scores[cell.folder]) for cell in cells.itertuples()}
    folders = cells.set_index(["category", "model"])["folder"]
    chosen = choose(judged, models)
    strips: dict[Choice, Strip] = {}
    for category in sorted({choice.category for choice in chosen}):
        shown = [model for model in models if (category, model) in judged]
        heat = {model: _heat(folders[category, model], judged[category, model]) for model in shown}
        for choice in chosen:
            if choice.category == category:
                strips[choice] = _strip(choice, {model: judged[category, model] for model in shown}, heat)
    caption = (
        "Each row is one test image; the outline is its mask, where it has one. Below each heat map: how "
        "far the score is above (+) or below (-) the threshold of the model's best F1 on these test images, in "
        "interquartile ranges of the scores of normal ones. Each model and category has one scale of colours: clear "
        f"at the median pixel of normal test images, middle where {100 * (1 - RARE):.1f} % of their pixels are above, "
        f"full at twice that. The worst of {models[0]} come first, then those of the others. Each model with its first "
        "finished seed."
    )
    return Gallery(caption, [strips[choice] for choice in chosen]) if chosen else None


def judge(scores: pd.DataFrame) -> pd.DataFrame:
    """Return scores with their ``distance`` from the threshold of the best F1.

    The unit is the interquartile range of the normal scores, so that neither a shift nor a scale of the scores
    matters. A distance of 0 or more is called defective.

    Args:
        scores: Rows with label (1 for anomalous) and score, of both labels.
    """
    precision, recall, thresholds = precision_recall_curve(scores["label"], scores["score"])
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
    threshold = thresholds[f1[:-1].argmax()]
    normal = scores.loc[scores["label"] == 0, "score"]
    unit = normal.quantile(0.75) - normal.quantile(0.25)
    unit = unit if unit > 0 else float(scores["score"].std()) or 1.0
    return scores.assign(distance=(scores["score"] - threshold) / unit)


def choose(judged: dict[tuple[str, str], pd.DataFrame], models: list[str]) -> list[Choice]:
    """Return the images to show.

    Args:
        judged: Scores with their distances, by category and model.
        models: Models in order.

    Returns:
        The lowest anomalous and the highest normal images of the first model that has any, then of each other one;
        no image twice.
    """
    chosen: dict[tuple[str, str], str] = {}
    present = [model for model in models if any(model == name for _, name in judged)]
    for model in present:
        table = pd.concat(
            [scores.assign(category=category) for (category, name), scores in judged.items() if name == model]
        )
        for label, ascending in ((1, True), (0, False)):
            count = OF_FIRST if model == present[0] else OF_OTHERS
            for image in table[table["label"] == label].sort_values("distance", ascending=ascending).itertuples():
                key = image.category, image.path
                if count == 0 or len(chosen) >= MOST:
                    break
                if key not in chosen:
                    chosen[key] = _reason(model, label, image.distance)
                    count -= 1
    return [Choice(*key, reason) for key, reason in chosen.items()]


def _reason(model: str, label: int, distance: float) -> str:
    if label == 1:
        return f"missed by {model}" if distance < 0 else f"lowest defect of {model}, found"
    return f"false alarm of {model}" if distance >= 0 else f"highest good image of {model}, no alarm"


class _Heat(NamedTuple):
    """A model's maps of a category (N, h, w), the row of each image, and the ends of the scale."""

    maps: np.ndarray
    rows: dict[str, int]
    clear: float
    middle: float


def _heat(folder: Path, scores: pd.DataFrame) -> _Heat | None:
    """Return a cell's maps with their scale, or nothing where they do not belong to its scores."""
    maps = read_arrays(folder / "maps.npz").get("maps")
    if maps is None or maps.ndim != 3 or len(maps) != len(scores):  # noqa: PLR2004
        return None
    normal = maps[(scores["label"] == 0).to_numpy()].astype(np.float32)
    clear, middle = np.quantile(normal, [0.5, RARE], method="lower")
    rows = {path: row for row, path in enumerate(scores["path"])}
    return _Heat(maps, rows, float(clear), float(max(middle, np.nextafter(clear, np.inf))))


def _strip(choice: Choice, judged: dict[str, pd.DataFrame], heat: dict[str, _Heat | None]) -> Strip:
    path = Path(choice.path)
    image = _open(path)
    classes = {str(name) for scores in judged.values() for name in scores.loc[scores["path"] == choice.path, "class"]}
    label = max(
        int(scores.loc[scores["path"] == choice.path, "label"].max())
        for scores in judged.values()
        if choice.path in set(scores["path"])
    )
    masks = {mask for scores in judged.values() for mask in scores.loc[scores["path"] == choice.path, "mask"]} - {""}
    outline = _outline(Path(masks.pop()), image.size) if label and masks else None
    tiles = [
        Tile(
            _jpeg(image, outline),
            "image",
            "outlined: the mask" if outline is not None else "no mask" if label else "good",
        )
    ]
    for model, scores in judged.items():
        row = scores[scores["path"] == choice.path]
        if row.empty:
            continue
        distance = float(row["distance"].iloc[0])
        verdict = "defective" if distance >= 0 else "good"
        maps = heat[model]
        picture = image if maps is None else _overlay(image, maps, choice.path)
        right = (distance >= 0) == bool(label)
        tiles.append(Tile(_jpeg(picture, outline), model, f"{distance:+.1f}, {verdict}{'' if right else ': wrong'}"))
    kind = ", ".join(sorted(classes))
    return Strip(f"{choice.category}, {kind}, {path.name}: {choice.reason}", tiles)


def _open(path: Path) -> Image.Image:
    """Return an image in the size of the gallery; grey where the file has gone."""
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except OSError:
        return Image.new("RGB", (SIDE, SIDE), (200, 200, 200))
    factor = SIDE / max(image.size)
    width, height = (max(1, round(side * factor)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _outline(place: Path, size: tuple[int, int]) -> np.ndarray | None:
    """Return where to draw the outline of a mask, just outside of it, as booleans (h, w); nothing if it has gone."""
    if not place.is_file():
        return None
    with Image.open(place) as file:
        # a box filter and no threshold in between, so that a mask of few pixels is not lost in shrinking
        mask = np.asarray(file.convert("L").point(lambda grey: 255 * (grey > 0)).resize(size, Image.Resampling.BOX)) > 0
    return binary_dilation(mask, np.ones((3, 3))) & ~mask


def _overlay(image: Image.Image, heat: _Heat, path: str) -> Image.Image:
    """Return the image under the colours of its map, clear where the map is as on normal images."""
    share = np.clip(
        (heat.maps[heat.rows[path]].astype(np.float32) - heat.clear) / (2 * (heat.middle - heat.clear)), 0, 1
    )
    smooth = np.asarray(Image.fromarray(share).resize(image.size, Image.Resampling.BILINEAR))
    colours = colormaps["plasma"](smooth)[..., :3] * 255
    opacity = OPACITY * smooth[..., None] ** 0.7
    return Image.fromarray((colours * opacity + np.asarray(image) * (1 - opacity)).astype(np.uint8))


def _jpeg(image: Image.Image, outline: np.ndarray | None) -> bytes:
    """Return the contents of a JPEG file, with the outline drawn."""
    pixels = np.array(image)
    if outline is not None:
        pixels[outline] = OUTLINE
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
