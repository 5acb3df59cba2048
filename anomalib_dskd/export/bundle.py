# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Write a bundle: graph, thresholds, inspector and what a person needs to run them, in one folder."""

import json
import math
import shutil
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import openvino as ov

from anomalib_dskd import __version__, inspector
from anomalib_dskd.errors import DskdError, check_choice
from anomalib_dskd.model import Dskd
from anomalib_dskd.model.post_processor import check_sensitivity

from .checkpoint import load_checkpoint
from .graph import convert, cropped
from .quantize import quantize
from .verify import (
    Comparison,
    bundle_size,
    common_size,
    compare,
    drawn_pairs,
    find_images,
    fitting,
    image_pairs,
    refuse_differences,
)

PRECISIONS = ("f32", "f16", "int8")
VERSIONS = ("anomalib", "torch", "torchvision", "timm", "openvino", "nncf", "pillow", "numpy")
FORMULA = "1 / (1 + (threshold / raw) ** 2)"


def export(
    ckpt: Path,
    out: Path,
    precision: str = "f32",
    images: Path | None = None,
    verify: Path | None = None,
    max_flips: int = 0,
) -> None:
    """Write a bundle that decides as a checkpoint does, for machines without torch and anomalib.

    Args:
        ckpt: Checkpoint that anomalib wrote.
        out: Folder to write; it must not exist yet.
        precision: Of the network: f32, f16 (weights of half the size) or int8 (needs images).
        images: Folder of normal training images: int8 takes its value ranges from them, and where all have one size
            the inspector refuses images of another one.
        verify: Folder of further images, good and bad ones, whose verdicts are compared with the checkpoint's, as
            those of images are.
        max_flips: Flipped verdicts to put up with among these.

    Raises:
        DskdError: If the checkpoint cannot be exported, no image to verify with has the size that the bundle takes, or
            the bundle would decide otherwise than it does.
    """
    check_choice("precision", precision, PRECISIONS)
    if out.exists():
        msg = f"{out} exists already: give another folder, or remove it."
        raise DskdError(msg)
    if precision == "int8" and images is None:
        msg = "precision='int8' needs images: a folder of normal training images to take value ranges from."
        raise DskdError(msg)
    normal = find_images(images)
    size = common_size(normal)
    further = fitting(find_images(verify), size)
    model = load_checkpoint(ckpt)
    thresholds = raw_thresholds(model)
    graph = convert(model)
    if precision == "int8":
        graph = quantize(graph, normal)
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        write_files(part, graph, precision)
        metadata = describe(model, ckpt, graph, precision, thresholds, size)
        write_metadata(part, metadata)
        metadata["verification"] = check(model, part, normal + further, metadata["input"], precision, max_flips)
        write_metadata(part, metadata)
        part.replace(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    print(f"{out} is complete; bundle {metadata['bundle']}. Try: python {out / 'inspector.py'} IMAGES")  # noqa: T201


def raw_thresholds(model: Dskd) -> dict[str, float]:
    """Return for image and pixel the raw threshold ``x`` of the normalisation and the ``x_verdict`` to be exceeded.

    anomalib's sensitivity moves the second away from the first.

    Raises:
        DskdError: If the checkpoint has no thresholds, or a sensitivity that gives none.
    """
    thresholds: dict[str, float] = {}
    for name in ("image", "pixel"):
        processor = model.post_processor
        threshold = float("nan") if processor is None else float(getattr(processor, f"{name}_threshold"))
        if not math.isfinite(threshold):
            msg = f"The checkpoint has no {name} threshold: train with validation images."
            raise DskdError(msg)
        sensitivity = check_sensitivity(f"{name}_sensitivity", float(getattr(processor, f"{name}_sensitivity")))
        thresholds[name] = threshold
        thresholds[f"{name}_verdict"] = threshold * math.sqrt(1 / sensitivity - 1)
    return thresholds


def write_files(folder: Path, graph: ov.Model, precision: str) -> None:
    """Write all files of a bundle but ``metadata.json``."""
    ov.save_model(graph, folder / "model.xml", compress_to_fp16=precision == "f16")
    shutil.copyfile(inspector.__file__, folder / "inspector.py")
    readme = files("anomalib_dskd.export").joinpath("bundle_readme.md").read_text(encoding="utf-8")
    (folder / "README.md").write_text(readme, encoding="utf-8")
    requirements = f"openvino=={version('openvino')}\nnumpy>=1.26\npillow>=10\n"
    (folder / "requirements.txt").write_text(requirements, encoding="utf-8")


def describe(
    model: Dskd,
    ckpt: Path,
    graph: ov.Model,
    precision: str,
    thresholds: dict[str, float],
    size: tuple[int, int] | None,
) -> dict[str, Any]:
    """Return the contents of ``metadata.json``, without digests and verification."""
    arguments = dict(model.hparams)
    teacher = arguments.pop("teacher_weights", None)
    shape = graph.output("map").partial_shape
    width, height = size or (None, None)
    return {
        "schema": inspector.SCHEMA,
        "schema_version": inspector.SCHEMA_VERSION,
        "bundle": "",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "threshold": {
            "image": thresholds["image_verdict"],
            "pixel": thresholds["pixel_verdict"],
            "image_at_export": thresholds["image_verdict"],
            "pixel_at_export": thresholds["pixel_verdict"],
        },
        "normalisation": {"formula": FORMULA, "image": thresholds["image"], "pixel": thresholds["pixel"]},
        "false_alarm_rate": arguments["false_alarm_rate"],
        "input": {
            "name": "images",
            "layout": "NHWC",
            "type": "u8",
            "channels": "RGB, as Pillow's convert('RGB') decodes 8-bit images; the graph does the rest",
            "width": width,
            "height": height,
            "network_size": [shape[1].get_length(), shape[2].get_length()],
            "cropped": cropped(model.pre_processor.transform),
        },
        "outputs": {output.get_any_name(): "raw, f32" for output in graph.outputs},
        "precision": precision,
        "inference_precision": "f32",
        "model": {key: value for key, value in arguments.items() if isinstance(value, (str, int, float, list))},
        "teacher": {"backbone": arguments["backbone"], "weights": Path(teacher).name if teacher else "timm's own"},
        "checkpoint": {"name": ckpt.name, "sha256": inspector.digest(ckpt)},
        "versions": {"anomalib-dskd": __version__, **{name: version(name) for name in VERSIONS}},
        "files": {},
    }


def write_metadata(folder: Path, metadata: dict[str, Any]) -> None:
    """Write ``metadata.json`` with the digests of all other files."""
    metadata["files"] = {
        path.name: inspector.digest(path) for path in sorted(folder.iterdir()) if path.name != inspector.METADATA
    }
    metadata["bundle"] = inspector.bundle_identity(metadata["files"])
    (folder / inspector.METADATA).write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")


def check(
    model: Dskd, folder: Path, images: Sequence[Path], contract: dict[str, Any], precision: str, max_flips: int
) -> dict[str, Any]:
    """Compare a written bundle with its model, on drawn pictures and on the images at hand.

    Returns:
        What ``metadata.json`` says of it.

    Raises:
        DskdError: If :func:`~anomalib_dskd.export.verify.refuse_differences` does.
    """
    size = bundle_size(contract)
    drawn = compare(model, folder, drawn_pairs(size))
    real = compare(model, folder, image_pairs(images))
    print(real.report() if images else "No images were given to verify with; drawn pictures alone were compared.")  # noqa: T201
    refuse_differences([drawn, real], len(real.flips), precision, max_flips)
    return {"drawn_pictures": _without_flips(drawn), "images": real.summary() if images else "none were given"}


def _without_flips(drawn: Comparison) -> dict[str, Any]:
    return {key: value for key, value in drawn.summary().items() if "flips" not in key}
