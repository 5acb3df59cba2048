# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Latency and throughput of trained models side by side, in PyTorch and OpenVINO."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from anomalib.models import AnomalibModule

from anomalib_dskd.errors import DskdError
from anomalib_dskd.model.cost import evaluating

from .config import slug
from .engines import Engine, OpenVinoEngine, TorchEngine, read_images
from .environment import has_bf16
from .exported import Exported, describe, export
from .interleaved import interleave
from .peak_memory import PeakMemory

MIN_ROUNDS = 10
PRECISIONS = {"torch": ("f32", "bf16"), "openvino": ("f32", "bf16", "int8")}
FIGURES = (
    "median_ms",
    "q1_ms",
    "q3_ms",
    "p99_ms",
    "images_per_second",
    "ratio",
    "ratio_to_torch",
    "file_to_verdict_ms",
    "rounds",
)


class Candidate(NamedTuple):
    """What a row of the result is about."""

    model: str
    engine: str
    precision: str

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Candidate":
        """Return what a row is about."""
        return cls(row["model"], row["engine"], row["precision"])

    @property
    def file(self) -> str:
        """Precision of the export: OpenVINO computes in bf16 from the f32 one."""
        return "int8" if self.precision == "int8" else "f32"


def measure_latency(
    models: Mapping[str, AnomalibModule],
    images: Sequence[str | Path],
    folder: Path,
    image_size: tuple[int, int],
    calibration: Sequence[str | Path] = (),
    engines: Sequence[str] = ("torch", "openvino"),
    batches: Sequence[int] = (1, 4, 16),
    rounds: int = 100,
    warmup: int = 3,
    seed: int = 0,
    threads: int | None = None,
    progress: Callable[[str, int, int], object] = lambda *_: None,
) -> list[dict[str, Any]]:
    """Time models in turns within this process, on the CPU; start it with :data:`.interleaved.PROCESS_ENVIRONMENT`.

    Every model is given the same images, resized to ``image_size`` beforehand, float32 in [0, 1]: what is timed is
    normalisation, network, map, score and verdict, until they are arrays. The time from a file on the disk to a verdict
    adds reading, decoding and the resize, the same for all; the file is in the system's cache. Models in PyTorch have
    their weights in channels_last order, the faster one on CPUs, whether or not they would choose it themselves.

    INT8 is NNCF's post-training quantisation of what it knows, the rest in bf16 where the CPU has it, in f32 elsewhere.

    Args:
        models: Trained models by name. They are moved to the CPU for the time being.
        images: Image files to predict in turn.
        folder: Where the exports go, in a folder a model.
        image_size: Height and width of the input in pixels.
        calibration: Normal training images, for INT8.
        engines: ``"torch"``, ``"openvino"`` or both.
        batches: Batch sizes. The time from a file to a verdict is measured with batch 1.
        rounds: Number of timed runs of each with batch 1; with larger batches as many fewer as they are larger, but
            10 at least. The 99th percentile of fewer than 100 is between the two slowest.
        warmup: Number of rounds before that.
        seed: Seed of the order in each round.
        threads: Number of threads. Defaults to torch's.
        progress: Called with the stage, and steps done and to be done in it.

    Returns:
        A row for each model, engine (``torch``, ``openvino``), precision (``f32``, ``bf16``, ``int8``) and batch:
        ``median_ms``, ``q1_ms``, ``q3_ms`` and ``p99_ms`` for the batch; ``images_per_second``, from the median;
        ``best_batch``, whether that is the model's highest in this engine and precision; ``ratio`` to the first model
        in the same engine, precision and batch, and ``ratio_to_torch`` to the same model in torch f32, both the median
        over rounds of the ratio within a round; ``file_to_verdict_ms``, median; ``peak_memory_mib``, weights and what
        loading and a prediction need above the process; ``map_error``, the mean absolute difference of the anomaly map
        to that of torch in f32, as a share of the latter's mean, ``None`` where that is 0; ``exported_mb``;
        ``rounds``, ``threads``; ``error``, why there are no figures.

    Raises:
        DskdError: If there is nothing to time.
    """
    if not models or not images or rounds < 1 or min(batches, default=0) < 1:
        msg = f"Nothing to time: {len(models)} models, {len(images)} images, {rounds} rounds, batches {list(batches)}."
        raise DskdError(msg)
    reference = next(iter(models))
    rows: list[dict[str, Any]] = []
    with _on_cpu(models.values(), threads) as used_threads:
        exports = {}
        if "openvino" in engines:
            exports = _export_all(models, folder, image_size, calibration, batches, progress)
        bf16 = has_bf16()
        candidates = [
            Candidate(name, engine, precision)
            for name in models
            for engine in engines
            for precision in PRECISIONS[engine]
            if bf16 or precision != "bf16"
        ]
        build = partial(_build, models, exports, used_threads)
        for batch in batches:
            batch_rounds = rounds if batch == 1 else max(rounds // batch, min(rounds, MIN_ROUNDS))
            paths = [[images[(first + index) % len(images)] for index in range(batch)] for first in range(len(images))]
            loaded = {candidate: _load(candidate, build, models, paths[0], image_size) for candidate in candidates}
            told = partial(_tell_round, progress, batch, warmup, batch_rounds)
            seconds = _time(loaded, paths, image_size, batch_rounds, warmup, seed, told)
            for candidate in candidates:
                row = {**candidate._asdict(), "batch": batch, "threads": used_threads, **loaded[candidate].figures}
                row["exported_mb"] = _exported_mb(candidate, exports)
                rows.append(row | _statistics(candidate, batch, seconds, reference))
    for row in rows:
        same = [other for other in rows if Candidate.of(other) == Candidate.of(row)]
        row["best_batch"] = row is max(same, key=lambda other: other["images_per_second"] or 0.0) and not row["error"]
    return rows


@contextmanager
def _on_cpu(models: Iterable[AnomalibModule], threads: int | None) -> Iterator[int]:
    """Have the models ready to predict on the CPU and torch use so many threads; put both back at the end."""
    previous = torch.get_num_threads()
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, previous)
        torch.set_num_threads(threads or previous)
        for model in models:
            stack.callback(model.to, model.device)
            stack.enter_context(evaluating(model))
            model.cpu().model.to(memory_format=torch.channels_last)
        yield torch.get_num_threads()


class _Loaded(NamedTuple):
    """An engine that has predicted once, or the reason why there is none."""

    engine: Engine | None
    figures: dict[str, Any]


def _load(
    candidate: Candidate,
    build: Callable[[Candidate, int], Engine],
    models: Mapping[str, AnomalibModule],
    paths: Sequence[str | Path],
    image_size: tuple[int, int],
) -> _Loaded:
    batch = read_images(paths, image_size)
    try:
        with PeakMemory() as memory:
            engine = build(candidate, len(batch))
            predicted = engine(batch)
        expected = TorchEngine(models[candidate.model], "f32")(batch)
    except Exception as error:  # noqa: BLE001  # the others go on
        return _Loaded(None, {"error": describe(error), "peak_memory_mib": None, "map_error": None})
    mib = memory.mib
    if candidate.engine == "torch":  # its weights were there before
        mib += sum(tensor.nbytes for tensor in models[candidate.model].state_dict().values()) / 2**20
    difference = None
    if "anomaly_map" in expected:
        shape = expected["anomaly_map"].shape
        absolute = np.abs(predicted["anomaly_map"].reshape(shape) - expected["anomaly_map"]).mean(dtype=np.float64)
        mean = np.abs(expected["anomaly_map"]).mean(dtype=np.float64)
        difference = float(absolute / mean) if mean else None  # anomalib clamps the whole map of a normal image to 0
    return _Loaded(engine, {"error": None, "peak_memory_mib": mib, "map_error": difference})


def _time(
    loaded: Mapping[Candidate, _Loaded],
    paths: Sequence[Sequence[str | Path]],
    image_size: tuple[int, int],
    rounds: int,
    warmup: int,
    seed: int,
    progress: Callable[[int], object],
) -> dict[Candidate, np.ndarray]:
    """Return the seconds of every engine for a batch in memory and, where that is one image, from its file."""
    batches = [read_images(batch, image_size) for batch in paths[:rounds]]
    tasks: dict[Candidate, list[Callable[[int], object]]] = {}
    for candidate, (engine, _) in loaded.items():
        if engine is not None:
            tasks[candidate] = [partial(_predict, engine, batches)]
            if len(paths[0]) == 1:
                tasks[candidate].append(partial(_read_and_predict, engine, paths, image_size))
    return interleave(tasks, rounds, warmup, seed, progress)


def _tell_round(progress: Callable[[str, int, int], object], batch: int, warmup: int, rounds: int, turn: int) -> None:
    progress(f"batch {batch}", turn + warmup, rounds + warmup)


def _predict(engine: Engine, batches: Sequence[np.ndarray], turn: int) -> None:
    engine(batches[turn % len(batches)])


def _read_and_predict(
    engine: Engine, paths: Sequence[Sequence[str | Path]], image_size: tuple[int, int], turn: int
) -> None:
    engine(read_images(paths[turn % len(paths)], image_size))


def _statistics(
    candidate: Candidate, batch: int, seconds: Mapping[Candidate, np.ndarray], reference: str
) -> dict[str, Any]:
    if candidate not in seconds:
        return dict.fromkeys(FIGURES)
    own, *from_file = seconds[candidate]

    def ratio(other: Candidate) -> float | None:
        return float(np.median(own / seconds[other][0])) if other in seconds else None

    q1, median, q3, p99 = (float(value) for value in np.percentile(own * 1e3, [25, 50, 75, 99]))
    return {
        "median_ms": median,
        "q1_ms": q1,
        "q3_ms": q3,
        "p99_ms": p99,
        "images_per_second": batch / median * 1e3,
        "ratio": ratio(candidate._replace(model=reference)),
        "ratio_to_torch": ratio(candidate._replace(engine="torch", precision="f32")),
        "file_to_verdict_ms": float(np.median(from_file[0]) * 1e3) if from_file else None,
        "rounds": len(own),
    }


def _export_all(
    models: Mapping[str, AnomalibModule],
    folder: Path,
    image_size: tuple[int, int],
    calibration: Sequence[str | Path],
    batches: Sequence[int],
    progress: Callable[[str, int, int], object],
) -> dict[str, dict[str, Exported]]:
    images = read_images(calibration, image_size) if calibration else None
    exports = {}
    for number, (name, model) in enumerate(models.items()):
        progress("export", number, len(models))
        exports[name] = export(model, folder / slug(name), image_size, batches, images)
    return exports


def _build(
    models: Mapping[str, AnomalibModule],
    exports: Mapping[str, Mapping[str, Exported]],
    threads: int,
    candidate: Candidate,
    batch: int,
) -> Engine:
    """Make a candidate ready to run."""
    if candidate.engine == "torch":
        return TorchEngine(models[candidate.model], candidate.precision)
    exported = exports[candidate.model][candidate.file]
    if exported.error:
        raise DskdError(exported.error)
    hint = "bf16" if candidate.precision != "f32" and has_bf16() else "f32"
    return OpenVinoEngine(exported.files[batch], batch, hint, threads)


def _exported_mb(candidate: Candidate, exports: Mapping[str, Mapping[str, Exported]]) -> float | None:
    if candidate.engine == "torch" or exports[candidate.model][candidate.file].error:
        return None
    return exports[candidate.model][candidate.file].megabytes
