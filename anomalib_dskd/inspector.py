# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Judge images of parts with an exported bundle: ``python inspector.py SOURCE``.

One file on openvino, numpy and pillow alone; it lies in every bundle and is ``anomalib-dskd inspect`` too. It only
decodes images and compares scores: resizing, network and map are in the bundle's graph, thresholds in metadata.json.

Exit code: 0 all parts OK, 3 NG found, 4 errors among the parts, or stopped before all of a folder were judged;
1 it could not work at all, 2 wrong arguments.
"""

import time

STARTED = time.perf_counter()  # before the imports below, which are most of the start-up

# ruff: noqa: E402
import argparse
import hashlib
import io
import json
import math
import os
import queue
import re
import signal
import stat
import statistics
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

try:
    import openvino as ov
except ModuleNotFoundError:  # Dskd reads images as this file does, where nothing is to be run by OpenVINO too
    ov = None

SCHEMA, SCHEMA_VERSION = "anomalib-dskd bundle", 1
METADATA = "metadata.json"
OK, NG, ERROR = "OK", "NG", "ERROR"
EXIT_NG, EXIT_ERROR = 3, 4
EXTENSIONS = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}
MORE_THAN_8_BIT = {"I", "F"}
HIGHEST_LEVEL = 255
BYTES_PER_PIXEL = 8  # of the largest file: 16 bits and an alpha channel, uncompressed
PICTURE = re.compile(r"\d{8}T\d{12}Z-.*\.(ok|ng)\.(jpg|npz|part)")
SMALLEST_PICTURE, LARGEST_PICTURE = 400, 1024
LISTED_REGIONS = 20
REMEMBERED_LATENCIES = 10_000
REMEMBERED_FILES = 100_000
BACKLOG = 10_000
POLL = 0.1
MEGABYTE = 1_000_000


# The bundle


class BundleError(Exception):
    """A bundle that must not be used; the message says why."""


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are those that were exported.

    Attributes:
        folder: Where it lies.
        identity: Short digest over all files, the same for every copy.
        threshold: Raw score above which a part is NG.
        pixel_threshold: Value of the raw map above which a pixel belongs to a region.
        cropped: What the graph crops of the image that it has resized, in pixels of the map: left, top, right, bottom.
        metadata: All of ``metadata.json``.
    """

    folder: Path
    identity: str
    threshold: float
    pixel_threshold: float
    cropped: list[int]
    metadata: dict[str, Any]

    @classmethod
    def open(cls, folder: Path, threshold: float | None = None) -> "Bundle":
        """Read and check a bundle.

        Args:
            folder: Folder of the bundle.
            threshold: Raw score to use in place of the one in ``metadata.json``.

        Raises:
            BundleError: If a file is missing or was changed, or the schema is not this inspector's.
        """
        try:
            metadata = json.loads((folder / METADATA).read_text(encoding="utf-8"))
        except FileNotFoundError:
            msg = f"{folder} is no bundle: it has no {METADATA}. Give the folder that anomalib-dskd export wrote."
            raise BundleError(msg) from None
        except (OSError, ValueError) as error:
            msg = f"{folder / METADATA} cannot be read: {error}. Copy the bundle again."
            raise BundleError(msg) from None
        try:
            found = metadata["schema"], metadata["schema_version"]
            if found != (SCHEMA, SCHEMA_VERSION):
                msg = (
                    f"{folder / METADATA} has schema {found[0]!r} version {found[1]!r}, this inspector reads "
                    f"{SCHEMA!r} version {SCHEMA_VERSION}. Use the inspector.py inside that bundle."
                )
                raise BundleError(msg)
            identity = check_files(folder, metadata)
            chosen = metadata["threshold"]
            image, pixel = float(chosen["image"] if threshold is None else threshold), float(chosen["pixel"])
            for value in (image, pixel, *(float(metadata["normalisation"][name]) for name in ("image", "pixel"))):
                if not math.isfinite(value) or value < 0:
                    msg = f"A threshold of {value} is no score: give a finite number, not negative."
                    raise BundleError(msg)
            _ = [chosen[f"{name}_at_export"] for name in ("image", "pixel")]
            _ = [metadata["input"][name] for name in ("width", "height", "network_size")]
            cropped = [int(side) for side in metadata["input"].get("cropped", [0] * 4)]
            if len(cropped) != 4 or min(cropped) < 0:  # noqa: PLR2004
                msg = f"cropped={cropped}"
                raise ValueError(msg)  # noqa: TRY301
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            msg = f"{folder / METADATA} is damaged: {type(error).__name__} {error}. Copy the bundle again."
            raise BundleError(msg) from None
        return cls(folder, identity, image, pixel, cropped, metadata)

    def of_whole_image(self, anomaly_map: np.ndarray) -> np.ndarray:
        """Return a map ``(h, w)`` with zeros around it, where the image was cropped before it was judged."""
        left, top, right, bottom = self.cropped
        return np.pad(anomaly_map, ((top, bottom), (left, right)))


def digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def bundle_identity(digests: dict[str, str]) -> str:
    """Return the identity of a bundle with these files and digests."""
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:16]


def check_files(folder: Path, metadata: dict[str, Any]) -> str:
    """Compare each file with its digest and return the bundle's identity.

    Raises:
        BundleError: If a file is missing or was changed, or the list of files itself was.
    """
    for name, expected in metadata["files"].items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            msg = f"{path} is missing. Copy the whole bundle again."
            raise BundleError(msg)
        if digest(path) != expected:
            msg = f"{path} is not the file that was exported (its SHA-256 differs). Copy the bundle again."
            raise BundleError(msg)
    identity = bundle_identity(metadata["files"])
    if identity != metadata["bundle"] or "model.xml" not in metadata["files"]:
        msg = f"The list of files in {folder / METADATA} was changed. Copy the bundle again."
        raise BundleError(msg)
    return identity


# Images


class ImageError(Exception):
    """An image that cannot be judged; the message says why."""


def decode(data: bytes, max_pixels: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode an image as anomalib does in training, or refuse it.

    Args:
        data: Contents of the file.
        max_pixels: Width times height that is not to be exceeded; read before anything is decoded.
        size: Width and height that the image must have, if any.

    Returns:
        RGB image of shape ``(H, W, 3)`` in ``uint8``.

    Raises:
        ImageError: If it is too large, of another size or has more than 8 bits a channel.
        Exception: Pillow's, of many kinds, if the data are damaged or incomplete.
    """
    if not data:
        msg = "it is empty"
        raise EOFError(msg)
    with Image.open(io.BytesIO(data)) as image:
        if image.width * image.height > max_pixels:
            msg = f"it has {image.width}x{image.height} pixels, more than --max-pixels {max_pixels}"
            raise ImageError(msg)
        if size is not None and image.size != size:
            msg = f"it has {image.width}x{image.height} pixels, the bundle was made for {size[0]}x{size[1]}"
            raise ImageError(msg)
        if has_more_than_8_bits(image):
            msg = f"it has 16-bit or float levels (mode {image.mode}), the model was trained on 8 bits"
            raise ImageError(msg)
        if image.format == "PNG":
            image.verify()  # checksums, which decoding does not look at
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def has_more_than_8_bits(image: Image.Image) -> bool:
    """Tell an image with more than 8 bits a channel before it is decoded: Pillow gives 16-bit colour as RGB."""
    for tile in getattr(image, "tile", ()):
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)  # only the decoder's arguments tell
        highest = arguments[-1] if tile[0] in {"ppm", "ppm_plain"} else 0
        if ";16" in str(arguments) or (isinstance(highest, int) and highest > HIGHEST_LEVEL):
            return True
    return image.mode in MORE_THAN_8_BIT or ";16" in image.mode


@dataclass
class Part:
    """A part on its way through the inspector; ``status`` is its file's size and time of change when it was read.

    ``fresh`` parts came while the folder was watched, so that their file's time need not be asked how old they are.
    """

    path: Path
    number: int = 0
    fresh: bool = False
    status: tuple[int, int] | None = None
    image: np.ndarray | None = None
    outputs: dict[str, np.ndarray] = field(default_factory=dict)
    problem: str = ""
    latency: float = 0.0


def read_part(
    part: Part,
    decode_data: Callable[[bytes], np.ndarray],
    max_bytes: int,
    patience: float,
    stopping: Callable[[], bool],
) -> np.ndarray:
    """Read a part's image, and wait for one that is still being written.

    Args:
        part: Part to read; its status is set.
        decode_data: Function from the file's contents to the image.
        max_bytes: Size of a file that is not to be exceeded; looked at before anything is read.
        patience: Seconds after its last change for which a file that cannot be decoded is tried again.
        stopping: Whether nothing is to be waited for any more.

    Returns:
        What ``decode_data`` returns.

    Raises:
        ImageError: As ``decode_data`` does, or if it is too large or no file.
        Exception: Pillow's, if the file is damaged, or the system's.
    """
    since = time.monotonic()
    while True:
        status = part.path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would never end
            msg = "it is no file"
            raise ImageError(msg)
        if status.st_size > max_bytes:
            msg = f"it has {status.st_size} bytes, more than {BYTES_PER_PIXEL} for each of --max-pixels"
            raise ImageError(msg)
        if part.status != (status.st_size, status.st_mtime_ns):
            part.status, since = (status.st_size, status.st_mtime_ns), time.monotonic()
        try:
            return decode_data(part.path.read_bytes())
        except ImageError:
            raise
        except Exception:
            waited = time.monotonic() - since
            if not part.fresh:  # an old damaged file costs no time; a fresh one's clock may be another machine's
                waited = max(waited, time.time() - status.st_mtime)
            if waited > patience or stopping():
                raise
        time.sleep(min(POLL, patience))


# The model


class Model:
    """The bundle's graph, compiled, with as many requests as the device likes to have in flight.

    Args:
        bundle: Checked bundle.
        device: OpenVINO's name of a device.
        throughput: Whether many images at a time are wanted, or each as soon as possible.
        threads: CPU threads of the inference, ``0`` for OpenVINO's choice.
        cache: Folder for the compiled model, if it is to be kept.
        students: Whether to compute the students' maps beside score and map.

    Raises:
        BundleError: If OpenVINO is not installed or the device cannot be used.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: str = "CPU",
        throughput: bool = True,
        threads: int = 0,
        cache: Path | None = None,
        students: bool = False,
    ) -> None:
        if ov is None:
            msg = "OpenVINO is not installed. Run: pip install -r requirements.txt, which lies in the bundle."
            raise BundleError(msg)
        core = ov.Core()
        model = core.read_model(bundle.folder / "model.xml")
        self.outputs = [output.get_any_name() for output in model.outputs]
        if not students:
            leave_out_students(model)
            self.outputs = ["score", "map"]
        contract = bundle.metadata["input"]
        self.size = (contract["width"], contract["height"]) if contract["width"] else None
        model.reshape(ov.PartialShape([1, *((self.size[1], self.size[0]) if self.size else (-1, -1)), 3]))
        config: dict[str, Any] = {"PERFORMANCE_HINT": "THROUGHPUT" if throughput else "LATENCY"}
        if threads:
            config["INFERENCE_NUM_THREADS"] = threads
        if cache:
            config["CACHE_DIR"] = str(cache)
        if not device.startswith("NPU"):  # which knows 16 bits only
            config["INFERENCE_PRECISION_HINT"] = "f32"  # else bf16 where the CPU has it, and other verdicts
        try:
            compiled = core.compile_model(model, device, config)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            msg = f"The model cannot run on --device {device} ({reason}). Devices here: {core.available_devices}."
            raise BundleError(msg) from None
        self.requests = max(1, compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")) if throughput else 1
        self._idle: queue.SimpleQueue[ov.InferRequest] = queue.SimpleQueue()
        for _ in range(self.requests):
            self._idle.put(compiled.create_infer_request())
        width, height = self.size or contract["network_size"][::-1]
        self(np.zeros((height, width, 3), np.uint8))  # the first inference is slow

    def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Infer, beside the requests of other threads.

        Args:
            image: RGB image ``(H, W, 3)`` in ``uint8``.

        Returns:
            Score as an array without axes, map and further outputs ``(h, w)``, in ``float32``.
        """
        request = self._idle.get()
        try:
            # an AsyncInferQueue would never tell of a failed request
            request.start_async([image[None]], share_inputs=True)
            request.wait()
            return {name: request.get_tensor(name).data[0].copy() for name in self.outputs}
        finally:
            self._idle.put(request)


# The verdict


def leave_out_students(model: "ov.Model") -> None:
    """Remove the outputs of a bundle's graph beside score and map, in place."""
    for result in model.get_results():
        if result.output(0).get_any_name() not in {"score", "map"}:
            model.remove_result(result)


def normalise(score: np.ndarray | float, threshold: float) -> np.ndarray | float:
    """Put a raw score or map on the scale from 0 to 1 where the threshold at export is 0.5."""
    squared = np.square(score, dtype=np.float64)
    result = squared / (squared + max(threshold, np.finfo(np.float32).tiny) ** 2)
    return result if result.ndim else float(result)


def label_regions(mask: np.ndarray) -> np.ndarray:
    """Give the pixels of each region, joined by sides or corners, a number of its own; 0 stands for no region.

    Args:
        mask: Boolean array ``(H, W)``.
    """
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        padded = np.pad(labels, 1)
        rows = np.maximum.reduce([padded[:-2], padded[1:-1], padded[2:]])
        grown = np.where(mask, np.maximum.reduce([rows[:, :-2], rows[:, 1:-1], rows[:, 2:]]), 0)
        grown = np.concatenate([[0], grown.ravel()])[grown]  # a label is a pixel's number: take over its label
        if np.array_equal(grown, labels):
            return labels
        labels = grown


def find_regions(anomaly_map: np.ndarray, threshold: float, size: tuple[int, int]) -> list[dict[str, Any]]:
    """List the regions of a map that exceed a threshold, highest first, at most 20.

    Args:
        anomaly_map: Raw map ``(h, w)``.
        threshold: Value to exceed.
        size: Width and height of the image, whose pixels boxes and areas are given in.

    Returns:
        For each region its ``box`` (left, top, right, bottom), ``area`` and highest raw ``score``.
    """
    labels = label_regions(anomaly_map > threshold)
    across, down = size[0] / labels.shape[1], size[1] / labels.shape[0]
    regions = []
    for label in np.unique(labels[labels > 0]):
        rows, columns = np.nonzero(labels == label)
        box = columns.min() * across, rows.min() * down, (columns.max() + 1) * across, (rows.max() + 1) * down
        regions.append(
            {
                "box": [round(float(side)) for side in box],
                "area": round(len(rows) * across * down),
                "score": float(anomaly_map[rows, columns].max()),
            }
        )
    return sorted(regions, key=lambda region: -region["score"])[:LISTED_REGIONS]


# Pictures


def draw(image: np.ndarray, heat: np.ndarray, mask: np.ndarray, regions: list[dict[str, Any]]) -> Image.Image:
    """Draw the image, and beside it the image under its heat map with outlined regions and their boxes.

    Args:
        image: RGB image ``(H, W, 3)``.
        heat: Normalised map ``(h, w)``; 0.5 is the middle of the colours.
        mask: Pixels of the map that belong to regions, ``(h, w)``.
        regions: As :func:`find_regions` lists them.
    """
    height, width = image.shape[:2]
    scale = np.clip(1, SMALLEST_PICTURE / max(width, height), LARGEST_PICTURE / max(width, height))
    plain = Image.fromarray(image).resize((max(1, round(scale * width)), max(1, round(scale * height))))
    distances = np.abs(4 * heat[..., None] - np.array([3, 2, 1]))
    colours = Image.fromarray((255 * np.clip(1.5 - distances, 0, 1)).astype(np.uint8)).resize(plain.size)
    drawn = Image.blend(plain, colours, 0.4)
    outline = Image.fromarray(mask.astype(np.uint8) * 255).resize(plain.size)
    outline = outline.point(lambda value: 255 * (value > 127))  # noqa: PLR2004
    drawn.paste((255, 255, 255), mask=ImageChops.subtract(outline, outline.filter(ImageFilter.MinFilter(3))))
    pencil = ImageDraw.Draw(drawn)
    for region in regions:
        left, top, right, bottom = (scale * side for side in region["box"])
        pencil.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=(255, 0, 0), width=2)
    both = Image.new("RGB", (2 * plain.width, plain.height))
    both.paste(plain, (0, 0))
    both.paste(drawn, (plain.width, 0))
    return both


class Pictures:
    """Folder of pictures and maps that stays within a quota: the oldest of its own files go first.

    Args:
        folder: Where to write; made if it is not there.
        quota: Bytes that the files may take together.
    """

    def __init__(self, folder: Path, quota: int) -> None:
        self.folder, self.quota = folder, quota
        folder.mkdir(parents=True, exist_ok=True)
        own = sorted(path for path in folder.iterdir() if PICTURE.fullmatch(path.name))
        self._kept = deque((path, path.stat().st_size) for path in own)
        self._total = sum(size for _, size in self._kept)

    def save(self, name: str, write: Callable[[io.BytesIO], object]) -> Path:
        """Save what ``write`` writes, whole or not at all.

        Raises:
            OSError: If it cannot be written.
        """
        buffer = io.BytesIO()
        write(buffer)
        path = self.folder / name
        part = path.with_suffix(".part")
        try:
            part.write_bytes(buffer.getvalue())
            part.replace(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        self._kept.append((path, len(buffer.getvalue())))
        self._total += len(buffer.getvalue())
        while self._total > self.quota and len(self._kept) > 1:
            oldest, size = self._kept[0]
            try:
                oldest.unlink(missing_ok=True)
            except OSError:  # somebody looks at it, where that prevents it
                break
            self._kept.popleft()
            self._total -= size
        return path


# The log


class Log:
    """Append-only file of JSON lines; a line is on the disk when :meth:`write` returns.

    A line torn by a power cut stays alone on its line. What a full disk refuses is kept, up to 10,000 lines, and
    written when there is room again. Full files are renamed to ``FILE.1``, ``FILE.2``, ...

    Args:
        path: File to append to; made if it is not there.
        size: Bytes after which a new file is begun.
        files: Older files that are kept.
    """

    def __init__(self, path: Path, size: int, files: int) -> None:
        self.path, self.size, self.files = path, size, files
        self._backlog: deque[bytes] = deque(maxlen=BACKLOG)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._open()

    def _open(self) -> None:
        self._file = self.path.open("ab", buffering=0)
        self._torn = False
        if self.path.is_file() and self._file.tell():
            with self.path.open("rb") as file:
                file.seek(-1, os.SEEK_END)
                self._torn = file.read(1) != b"\n"

    def write(self, records: list[dict[str, Any]]) -> None:
        """Append records.

        Raises:
            OSError: If the disk refuses them; they are tried again with the next ones.
        """
        self._backlog.extend(json.dumps(record).encode() + b"\n" for record in records)
        if self._file.closed:
            self._open()
        elif self.path.is_file() and self._file.tell() >= self.size:
            self._rotate()
        while self._backlog:
            rest = b"\n" * self._torn + self._backlog[0]
            while rest:
                rest = rest[self._file.write(rest) :]
                self._torn = bool(rest)
            self._backlog.popleft()
        if self.path.is_file():
            os.fsync(self._file.fileno())

    def _rotate(self) -> None:
        self._file.close()
        # no further than the first gap: where somebody reads the newest, each attempt would push out the oldest
        free = next((n for n in range(1, self.files) if not numbered(self.path, n).exists()), self.files)
        for number in range(free, 0, -1):
            numbered(self.path, number - 1).replace(numbered(self.path, number))
        self._open()

    def judged(self) -> dict[str, tuple[int, int]]:
        """Return size and time of each file that a part was logged for, by its path."""
        found: dict[str, tuple[int, int]] = {}
        for number in range(self.files, -1, -1):
            path = numbered(self.path, number)
            for line in path.read_bytes().splitlines() if path.is_file() else ():
                with suppress(ValueError, KeyError, TypeError):  # a line torn by a power cut
                    record = json.loads(line)
                    if record["event"] == "part":
                        found[record["file"]] = record["bytes"], record["mtime_ns"]
        return found

    def close(self) -> int:
        """Close the file and return how many lines could not be written."""
        self._file.close()
        return len(self._backlog)


def numbered(path: Path, number: int) -> Path:
    """Return the name of the ``number``-th older file of a log."""
    return path.with_name(f"{path.name}.{number}") if number else path


# Where parts come from


def list_images(source: Path, leave_out: Path | None, problem: Callable[[OSError], None] | None = None) -> list[Path]:
    """List the images of a file or a folder and those below it, sorted; folders that links lead to are below it too.

    Args:
        source: File or folder.
        leave_out: Folder that is written to.
        problem: Called with the error of each folder that cannot be listed.
    """
    if os.path.isfile(source):  # noqa: PTH113 - Path's raises where a share is lost
        return [source]
    found: list[Path] = []
    top = Path(source).resolve()
    entered = {top}
    for folder, folders, names in os.walk(source, onerror=problem, followlinks=True):
        below = []
        for name in folders:
            path = Path(folder, name)
            target = path.resolve()
            # a link to within the folder shows what is listed there, and one to a folder above it has no end
            listed = target in entered or (path.is_symlink() and (target.is_relative_to(top) or target in top.parents))
            if target != leave_out and not listed:
                entered.add(target)
                below.append(name)
        folders[:] = below
        found += [Path(folder, name) for name in names if Path(name).suffix.lower() in EXTENSIONS]
    return sorted(found)


def status_of(path: Path) -> tuple[int, int] | None:
    """Return size and time of change of a file, ``None`` if it is gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def watch(
    source: Path,
    leave_out: Path | None,
    judged: dict[str, tuple[int, int] | None],
    settle: float,
    stopping: Callable[[], bool],
    warn: Callable[[str], None],
) -> Iterator[tuple[Path, bool] | None]:
    """Yield each file of a folder once it has not changed for ``settle`` seconds, and again when it has changed.

    Args:
        source: Folder to watch, with those below it.
        leave_out: Folder that is written to.
        judged: For each file that was yielded the size and time that it was judged with, to be entered by the caller;
            ``None`` while it is in hand. Beyond 100,000 files, those that are gone are taken out.
        settle: Seconds.
        stopping: Whether it is enough.
        warn: Told, once, of a folder that cannot be listed, a lost share for one. It is tried again.

    Yields:
        Path of a file and whether it came or changed under watch, or ``None`` where there is no new one now.
    """
    waiting: dict[Path, tuple[tuple[int, int], float]] = {}
    present: dict[Path, tuple[int, int]] | None = None
    look, lost = -math.inf, ""
    while not stopping():
        now = time.monotonic()
        if now >= look:
            problems: list[OSError] = []
            here = {path: s for path in list_images(source, leave_out, problems.append) if (s := status_of(path))}
            listing = time.monotonic() - now  # a large folder must not keep verdicts waiting
            if problems and not lost:
                warn(f"{problems[0]}; it is tried again")
            lost = str(problems[0]) if problems else ""
            if present is None:
                present = here
            # a file of the same name, size and time is the same part, though the share was lost in between
            if len(judged) > REMEMBERED_FILES and not problems:
                for gone in judged.keys() - map(str, here):
                    del judged[gone]
            waiting = {
                path: waiting[path] if path in waiting and waiting[path][0] == status else (status, now)
                for path, status in here.items()
                if judged.get(str(path), (-1, -1)) not in {None, status}
            }
            for path, (status, since) in waiting.items():
                if now - since >= settle and not stopping():
                    judged[str(path)] = None
                    yield path, present.get(path) != status
            look = time.monotonic() + max(POLL, listing)
        yield None


# Inspection


class Inspector:
    """Judge parts and tell, log and draw the verdicts.

    Args:
        bundle: Checked bundle.
        arguments: As :func:`parse` returns them.
    """

    def __init__(self, bundle: Bundle, arguments: argparse.Namespace) -> None:
        self.bundle, self.arguments = bundle, arguments
        self.stopping = False
        self.counts: Counter[str] = Counter()
        self.latencies: deque[float] = deque(maxlen=REMEMBERED_LATENCIES)
        self.pictures = Pictures(arguments.out, arguments.quota * MEGABYTE) if arguments.out else None
        size = arguments.log_size * MEGABYTE
        self.log = Log(arguments.log, int(size), arguments.log_files) if arguments.log else None
        self.judged: dict[str, tuple[int, int] | None] = {}
        many = not arguments.watch and arguments.source.is_dir()
        students = arguments.maps == "all"
        self.model = Model(bundle, arguments.device, many, arguments.threads, arguments.cache, students)
        self.begun = time.perf_counter()
        self._quiet = self._unfinished = False

    def run(self) -> int:
        """Inspect the source and return the exit code."""
        self._write_log([self._event("start", **self._setting())])
        workers = self.model.requests + min(4, os.cpu_count() or 1)
        pending: list[Future[Part]] = []
        with ThreadPoolExecutor(workers) as pool:
            for part in self._source():
                if part is not None:
                    part.number = sum(self.counts.values()) + len(pending) + 1
                    pending.append(pool.submit(self._judge, part))
                    if len(pending) < 2 * workers:
                        continue
                elif not pending:
                    time.sleep(POLL)
                pending = self._tell_finished(pending, timeout=None if part else POLL)
            while pending:
                pending = self._tell_finished(pending, timeout=None)
        return self._close()

    def stop(self, *_: object) -> None:
        """Finish the parts in hand and end :meth:`run`; a signal's handler."""
        self.stopping = True  # an Event's lock may be held by the very code that a signal interrupts

    def _source(self) -> Iterator[Part | None]:
        arguments = self.arguments
        leave_out = arguments.out.resolve() if arguments.out else None
        if arguments.watch:
            if self.log:
                self.judged.update(self.log.judged())
            for found in watch(
                arguments.source, leave_out, self.judged, arguments.settle, lambda: self.stopping, self._warn
            ):
                yield found and Part(found[0], fresh=found[1])
            return
        problems: list[OSError] = []
        listed = [(path, "") for path in list_images(arguments.source, leave_out, problems.append)]
        listed += [(Path(str(error.filename)), str(error)) for error in problems]
        if not listed:
            msg = f"{arguments.source} has no images ({', '.join(sorted(EXTENSIONS))})."
            raise BundleError(msg)
        for path, problem in listed:
            self._unfinished = self.stopping
            if self.stopping:
                return
            yield Part(path, problem=problem)  # made here, so that nothing holds its image once it is told

    def _judge(self, part: Part) -> Part:
        """Decode and infer, in a thread of its own; whatever goes wrong is an ERROR of this part alone."""
        if part.problem:
            return part
        begun = time.perf_counter()
        try:
            max_pixels = self.arguments.max_pixels
            decode_data = partial(decode, max_pixels=max_pixels, size=self.model.size)
            part.image = read_part(
                part, decode_data, BYTES_PER_PIXEL * max_pixels, self.arguments.patience, lambda: self.stopping
            )
            part.outputs = self.model(part.image)
            if not math.isfinite(part.outputs["score"]):
                part.problem = f"its score is {part.outputs['score']}"
        except ImageError as error:
            part.problem = str(error)
        except Exception as error:  # noqa: BLE001 - damaged files make Pillow raise almost anything
            part.problem = f"{type(error).__name__}: {error}"
        part.latency = time.perf_counter() - begun
        return part

    def _tell_finished(self, pending: list[Future[Part]], timeout: float | None) -> list[Future[Part]]:
        """Tell what is ready, and return the rest; in the order of the folder, or as they come where one is watched."""
        if self.arguments.watch:
            wait(pending, timeout, FIRST_COMPLETED)
            ready = [future for future in pending if future.done()]
        else:
            wait(pending[:1], timeout)
            ready = pending[: next((n for n, future in enumerate(pending) if not future.done()), len(pending))]
        records = [self._record(future.result()) for future in ready]
        if records:
            self._write_log(records)
            for record in records:
                self._print(record)
        return [future for future in pending if future not in ready]

    def _record(self, part: Part) -> dict[str, Any]:
        """Return what is logged of a part, and draw it."""
        self.latencies.append(part.latency)
        if self.arguments.watch:
            self.judged[str(part.path)] = part.status or (-1, -1)
        record: dict[str, Any] = {"part": part.number, "file": str(part.path)}
        if part.image is None or part.problem:
            record.update(verdict=ERROR, error=part.problem, score=None)
        else:
            score = float(part.outputs["score"])
            record.update(verdict=NG if score > self.bundle.threshold else OK, score=score)
            record["normalised"] = normalise(score, self.bundle.metadata["normalisation"]["image"])
        record["threshold"] = self.bundle.threshold
        record["latency_ms"] = round(1000 * part.latency, 2)
        self.counts[record["verdict"]] += 1
        if record["verdict"] == NG:
            anomaly_map = part.outputs["map"]
            level = self.bundle.pixel_threshold
            if anomaly_map.max() <= level:  # an NG part need not reach it: then where it stands out most
                level = (anomaly_map.max() + anomaly_map.mean()) / 2
            anomaly_map = self.bundle.of_whole_image(anomaly_map)
            record["regions"] = find_regions(anomaly_map, level, (part.image.shape[1], part.image.shape[0]))  # type: ignore[union-attr]
            self._save(part, record, anomaly_map, level)
        elif record["verdict"] == OK and self.arguments.pictures == "all":
            self._save(part, record, self.bundle.of_whole_image(part.outputs["map"]), math.inf)
        size, time_ns = part.status or (None, None)
        return self._event("part", **record, bytes=size, mtime_ns=time_ns)

    def _save(self, part: Part, record: dict[str, Any], anomaly_map: np.ndarray, level: float) -> None:
        """Save picture and maps; what is above the level in the map of the whole image is outlined."""
        if self.pictures is None or part.image is None:
            return
        now = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S%fZ")
        stem = part.path.stem.encode(errors="ignore")[:80].decode(errors="ignore")
        name = f"{now}-{stem}.{record['verdict'].lower()}"
        try:
            if self.arguments.pictures != "none":
                heat = normalise(anomaly_map, self.bundle.metadata["normalisation"]["pixel"])
                picture = draw(part.image, np.asarray(heat), anomaly_map > level, record.get("regions", []))
                saved = self.pictures.save(
                    f"{name}.jpg", lambda file: picture.save(file, "JPEG", quality=90, subsampling=0)
                )
                record["picture"] = str(saved)
            if self.arguments.maps != "none":
                arrays = {output: value for output, value in part.outputs.items() if output != "score"}
                record["maps"] = str(
                    self.pictures.save(
                        f"{name}.npz",
                        lambda file: np.savez(file, **arrays),  # type: ignore[arg-type]
                    )
                )
        except (OSError, ValueError, MemoryError) as error:
            self._warn(f"picture not saved: {error}")

    def _event(self, name: str, **what: Any) -> dict[str, Any]:  # noqa: ANN401
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        return {"event": name, "time": now, "bundle": self.bundle.identity, **what}

    def _setting(self) -> dict[str, Any]:
        thresholds = self.bundle.metadata["threshold"]
        exported, pixel_exported = thresholds["image_at_export"], thresholds["pixel_at_export"]
        for name, now, then in (
            ("threshold", self.bundle.threshold, exported),
            ("pixel threshold", self.bundle.pixel_threshold, pixel_exported),
        ):
            if now != then:
                self._warn(f"the {name} is {now:.6g}, changed from {then:.6g} at export")
        return {
            "source": str(self.arguments.source),
            "device": self.arguments.device,
            "requests": self.model.requests,
            "threshold": self.bundle.threshold,
            "threshold_at_export": exported,
            "pixel_threshold": self.bundle.pixel_threshold,
            "pixel_threshold_at_export": pixel_exported,
            "precision": self.bundle.metadata.get("precision"),
            "openvino": ov.__version__,
            "start_up_s": round(self.begun - STARTED, 3),
        }

    def _write_log(self, records: list[dict[str, Any]]) -> None:
        if self.log is None:
            return
        try:
            self.log.write(records)
        except OSError as error:
            self._warn(f"log not written: {error}; inspection goes on and the lines are tried again")

    def _print(self, record: dict[str, Any]) -> None:
        if self._quiet:
            return
        if self.arguments.json:
            line = json.dumps(record)
        elif record["verdict"] == ERROR:
            line = f"{ERROR:5} {record['file']}: {record['error']}"
        else:
            line = f"{record['verdict']:5} {record['score']:<9.6g} {record['latency_ms']:7.1f} ms  {record['file']}"
            line += "".join(f"  {region['box']}" for region in record.get("regions", [])[:3])
        try:
            print(line, flush=True)
        except BrokenPipeError as error:
            self._quiet = True
            self._warn(f"nobody reads the verdicts any more ({error}); inspection goes on without")
            silence_stdout()
        except OSError as error:  # what was not written stays in the stream's buffer, for the next time
            self._warn(f"verdict not written to standard output: {error}")

    def _warn(self, message: str) -> None:
        self._tell(f"warning: {message}")

    @staticmethod
    def _tell(message: str) -> None:
        with suppress(OSError):
            print(f"inspector: {message}", file=sys.stderr, flush=True)

    def _close(self) -> int:
        seconds = time.perf_counter() - self.begun
        parts = sum(self.counts.values())
        summary = {
            "parts": parts,
            **{verdict: self.counts[verdict] for verdict in (OK, NG, ERROR)},
            "seconds": round(seconds, 3),
            "parts_per_second": round(parts / seconds, 2),
            "p50_ms": percentile(self.latencies, 50),
            "p99_ms": percentile(self.latencies, 99),
            "start_up_s": round(self.begun - STARTED, 3),
            "stopped_early": self._unfinished,
        }
        self._write_log([self._event("summary", **summary)])
        if self.log is not None and (lost := self.log.close()):
            self._warn(f"{lost} lines of the log were never written")
        counts = ", ".join(f"{self.counts[verdict]} {verdict}" for verdict in (OK, NG, ERROR))
        self._tell(
            f"{'stopped before all were judged; ' if self._unfinished else ''}{parts} parts: {counts}; "
            f"p50 {summary['p50_ms']} ms, p99 {summary['p99_ms']} ms, {summary['parts_per_second']} parts/s, "
            f"start-up {summary['start_up_s']} s"
        )
        return EXIT_ERROR if self.counts[ERROR] or self._unfinished else EXIT_NG if self.counts[NG] else 0


def silence_stdout() -> None:
    """Let nothing more be written to standard output, whose failing last flush would change the exit code."""
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123


def percentile(values: deque[float], percent: int) -> float | None:
    """Return a percentile of seconds in milliseconds, ``None`` of nothing."""
    if len(values) < 2:  # noqa: PLR2004
        return round(1000 * values[0], 2) if values else None
    return round(1000 * statistics.quantiles(values, n=100, method="inclusive")[percent - 1], 2)


# The command


def parse(arguments: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parse the command's arguments."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Judge images of parts: OK, NG or ERROR.",
        epilog="Exit code: 0 all parts OK, 3 NG found, 4 errors among the parts or stopped before all were judged.",
    )
    number = positive(float)
    parser.add_argument("source", type=Path, help="image, or folder of images, with those below it")
    parser.add_argument(
        "--bundle", type=Path, default=Path(__file__).parent, help="bundle; by default beside this file"
    )
    parser.add_argument("--watch", action="store_true", help="go on judging files that come into the folder")
    parser.add_argument("--device", default="CPU", help="CPU, GPU, NPU or AUTO; default CPU")
    parser.add_argument("--threads", type=positive(int), default=0, help="CPU threads of the inference")
    parser.add_argument("--threshold", type=float, help="raw score above which a part is NG, for this run")
    parser.add_argument("--out", type=Path, help="folder for pictures; none without")
    parser.add_argument("--pictures", choices=["ng", "all", "none"], default="ng", help="parts to draw; default ng")
    parser.add_argument(
        "--maps",
        choices=["none", "fused", "all"],
        default="none",
        help="raw maps to save, of all parts with --pictures all, else of NG",
    )
    parser.add_argument("--quota", type=number, default=1000, help="megabytes of pictures to keep; default 1000")
    parser.add_argument("--log", type=Path, help="file of JSON lines to append to")
    parser.add_argument("--log-size", type=number, default=100, help="megabytes a log file; default 100")
    parser.add_argument("--log-files", type=positive(int), default=9, help="older log files to keep; default 9")
    parser.add_argument("--json", action="store_true", help="one JSON line a part on standard output")
    parser.add_argument("--cache", type=Path, help="folder to keep the compiled model in, for a faster start")
    parser.add_argument("--max-pixels", type=positive(int), default=64_000_000, help="largest image; default 64000000")
    parser.add_argument("--settle", type=number, default=0.3, help="seconds a watched file must rest; default 0.3")
    parser.add_argument(
        "--patience", type=number, default=3.0, help="seconds to wait for an unreadable file; default 3"
    )
    parsed = parser.parse_args(arguments)
    parsed.source = Path(os.path.abspath(parsed.source))  # the log tells files by their path # noqa: PTH100
    if not parsed.source.exists():
        parser.error(f"{parsed.source} does not exist")
    if parsed.watch and not parsed.source.is_dir():
        parser.error(f"--watch needs a folder, {parsed.source} is none")
    if parsed.out and parsed.out.resolve() == parsed.source.resolve():
        parser.error(f"--out {parsed.out} is the folder of the images: the pictures would be judged too; give another")
    if parsed.maps != "none" and not parsed.out:
        parser.error("--maps needs --out, the folder that they are saved in")
    return parsed


def positive(kind: type) -> Callable[[str], Any]:
    """Return a parser of numbers greater than 0."""

    def convert(text: str) -> Any:  # noqa: ANN401
        value = kind(text)
        if not 0 < value < math.inf:
            msg = f"{text} is not a number greater than 0"
            raise argparse.ArgumentTypeError(msg)
        return value

    convert.__name__ = kind.__name__
    return convert


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    """Run the command and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    parsed = parse(arguments, prog)
    Image.MAX_IMAGE_PIXELS = None  # --max-pixels decides
    try:
        inspector = Inspector(Bundle.open(parsed.bundle, parsed.threshold), parsed)
        for name in ("SIGTERM", "SIGINT", "SIGBREAK"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), inspector.stop)
        exit_code = inspector.run()
    except (BundleError, OSError, RuntimeError) as error:  # OpenVINO raises RuntimeError
        print(f"inspector: error: {error}", file=sys.stderr)
        return 1
    try:
        sys.stdout.flush()
    except OSError:
        silence_stdout()
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
