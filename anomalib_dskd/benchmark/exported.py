# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""OpenVINO exports of any model of anomalib: f32, f16, INT8."""

import io
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from anomalib.models import AnomalibModule

from anomalib_dskd.errors import DskdError
from anomalib_dskd.model.cost import evaluating

from .environment import has_vnni

logger = logging.getLogger(__name__)

MB = 1e6
PRECISIONS = ("f32", "f16", "int8")
# anomalib's default, 14, is beneath what torch writes: a conversion fails loudly and leaves the file as it is
OPSET = 18
CALIBRATION_IMAGES = 300
MESSAGE_LENGTH = 300


@dataclass(frozen=True)
class Exported:
    """A model in OpenVINO's format.

    Attributes:
        files: The ``.xml`` for each batch size; one for all where the batch is free.
        megabytes: Size of one of them with its weights, in 1e6 bytes.
        error: Why there is none, else empty.
    """

    files: dict[int, Path] = field(default_factory=dict)
    megabytes: float = float("nan")
    error: str = ""


def export(
    model: AnomalibModule,
    folder: Path,
    image_size: tuple[int, int],
    batches: Sequence[int] = (1,),
    calibration: np.ndarray | None = None,
) -> dict[str, Exported]:
    """Export a model with anomalib's own exporter, pre- and post-processor included.

    The batch is left free where the model allows it. Where it is built into the graph, as in PatchCore's, there is an
    export for each batch size.

    Args:
        model: Trained model of anomalib, on the CPU; its mode is left as it is.
        folder: Where the files go.
        image_size: Height and width of the images that will be given, in pixels.
        batches: Batch sizes that must be possible.
        calibration: Normal training images ``(N, 3, H, W)``, float32 in [0, 1], that INT8 is calibrated on by NNCF's
            post-training quantisation; at most 300 are used.

    Returns:
        For ``f32``, ``f16`` and ``int8`` the export, or the error that there was instead; nothing is raised.
    """
    try:
        with evaluating(model), _quiet():
            files = _export_f32(model, folder, image_size, batches)
    except Exception as error:  # noqa: BLE001  # a model that cannot be exported is a result
        return dict.fromkeys(PRECISIONS, Exported(error=describe(error)))
    return {
        "f32": _describe_files(files),
        "f16": _convert(files, "f16", _save_f16),
        "int8": _convert(files, "int8", partial(_save_int8, calibration)),
    }


def describe(error: Exception) -> str:
    """Return on one line the kind and message of what caused an error, of a :class:`DskdError` the message alone."""
    if isinstance(error, DskdError):
        return str(error)
    while isinstance(error.__cause__, Exception):  # torch's exporter wraps it in advice
        error = error.__cause__
    message = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())
    return f"{type(error).__name__}: {message[:MESSAGE_LENGTH]}"


def _export_f32(
    model: AnomalibModule, folder: Path, image_size: tuple[int, int], batches: Sequence[int]
) -> dict[int, Path]:
    def to_openvino(name: str, **onnx: Any) -> Path:  # noqa: ANN401
        onnx_kwargs = {"opset_version": OPSET, "verbose": False, **onnx}
        return model.to_openvino(folder, name, input_size=image_size, onnx_kwargs=onnx_kwargs)

    if find_spec("openvino") is None or find_spec("nncf") is None:
        msg = "OpenVINO is not installed: pip install 'anomalib-dskd[openvino]'."
        raise DskdError(msg)
    try:
        path = to_openvino("f32")
    except Exception:
        logger.debug("No export with a free batch", exc_info=True)
    else:
        if all(_takes(path, batch) for batch in batches):
            return dict.fromkeys(batches, path)
        path.unlink()
        path.with_suffix(".bin").unlink()
    return {batch: to_openvino(f"f32_batch{batch}", dynamic_shapes=({0: batch},)) for batch in batches}


def _takes(path: Path, batch: int) -> bool:
    """Tell whether an exported graph can be reshaped to a batch size."""
    import openvino  # noqa: PLC0415

    graph = openvino.Core().read_model(path)
    if graph.input(0).partial_shape[0].is_static:
        return False
    try:
        graph.reshape([batch, *(dimension.get_length() for dimension in list(graph.input(0).partial_shape)[1:])])
    except RuntimeError:
        return False
    return True


def _convert(files: dict[int, Path], precision: str, save: Callable[[Path, Path], None]) -> Exported:
    converted = {batch: path.with_name(path.name.replace("f32", precision)) for batch, path in files.items()}
    try:
        with _quiet():
            for path, target in set(zip(files.values(), converted.values(), strict=True)):
                save(path, target)
    except Exception as error:  # noqa: BLE001  # the other precisions go on
        return Exported(error=describe(error))
    return _describe_files(converted)


def _save_f16(path: Path, target: Path) -> None:
    import openvino  # noqa: PLC0415

    openvino.save_model(openvino.Core().read_model(path), target, compress_to_fp16=True)


def _save_int8(calibration: np.ndarray | None, path: Path, target: Path) -> None:
    import nncf  # noqa: PLC0415
    import openvino  # noqa: PLC0415
    from nncf.quantization.advanced_parameters import OverflowFix  # noqa: PLC0415

    if calibration is None or len(calibration) == 0:
        msg = "There are no images to calibrate INT8 on: give normal training images."
        raise DskdError(msg)
    graph = openvino.Core().read_model(path)
    size = graph.input(0).partial_shape[0]
    batch = 1 if size.is_dynamic else size.get_length()
    images = calibration[:CALIBRATION_IMAGES]
    batches = [np.take(images, range(start, start + batch), 0, mode="wrap") for start in range(0, len(images), batch)]
    # without VNNI sums of two products are kept in 16 bits; by default NNCF spares the first layer alone
    fix = None if has_vnni() else OverflowFix.ENABLE
    quantised = nncf.quantize(
        graph,
        nncf.Dataset(batches),
        subset_size=len(batches),
        advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=fix),
    )
    openvino.save_model(quantised, target, compress_to_fp16=False)
    _try(target)


def _try(path: Path) -> None:
    """Compile a graph in a process of its own: OpenVINO's compiler crashes on what NNCF makes of some PaDiMs.

    Raises:
        DskdError: If the process died.
    """
    program = (
        "import sys, openvino as ov; core = ov.Core(); graph = core.read_model(sys.argv[1]); "
        "shape = graph.input(0).partial_shape; "
        "graph.reshape([1, *list(shape)[1:]]) if shape[0].is_dynamic else None; core.compile_model(graph, 'CPU')"
    )
    tried = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False)  # noqa: S603
    if tried.returncode != 0:
        path.unlink()
        said = tried.stderr.strip().splitlines()[-1:] or [f"its process ended with status {tried.returncode}"]
        msg = f"OpenVINO cannot compile it: {said[0]}"
        raise DskdError(msg)


def _describe_files(files: dict[int, Path]) -> Exported:
    path = files[min(files)]
    return Exported(files, (path.stat().st_size + path.with_suffix(".bin").stat().st_size) / MB)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep progress bars, notes and graphs of the exporters out of the benchmark's own output."""
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(previous)
