# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Model and data of a cell: the same images, size, teacher and hold-out for all."""

import inspect
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import anomalib.data
import anomalib.models
import numpy as np
import torch
from anomalib.data import AnomalibDataModule
from anomalib.data.datasets.base.image import AnomalibDataset
from anomalib.data.utils import ValSplitMode
from anomalib.data.utils.synthetic import SyntheticAnomalyDataset
from anomalib.models import AnomalibModule
from anomalib.utils.serialization import anomalib_safe_globals
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn

from anomalib_dskd.errors import DskdError
from anomalib_dskd.local_weights import local_weights
from anomalib_dskd.model.components import build_backbone
from anomalib_dskd.model.lightning_model import Dskd
from anomalib_dskd.model.teacher_weights import RANDOM

from .config import RECIPES, Cell, class_name

SPLIT_SEED = 0
EVAL_BATCH_SIZE = 16


OWN_TRAINER_ARGUMENTS = {
    "callbacks",
    "default_root_dir",
    "devices",
    "enable_model_summary",
    "enable_progress_bar",
    "logger",
    "max_epochs",
    "max_steps",
    "num_nodes",
    "strategy",
}


@dataclass
class PreparedModel:
    """A model before its training.

    Attributes:
        model: The model.
        obstacle: Why it does not have the teacher's weights; ``None`` where it does.
    """

    model: AnomalibModule
    obstacle: str | None = None


def check(cells: Iterable[Cell]) -> None:
    """Find out whether models and data modules exist, take their arguments and have a length of training.

    A mistake in one would else show up hours later, after the others.

    Args:
        cells: Cells that are about to be run.

    Raises:
        DskdError: If there is no such class, it or Lightning's trainer has no such argument, the benchmark gives it
            itself, or nobody said how long to train it.
    """
    for key, package, kind in (("model", anomalib.models, AnomalibModule), ("data", anomalib.data, AnomalibDataModule)):
        seen: list[dict[str, Any]] = []
        for cell in cells:
            spec = cell.config[key]
            if spec not in seen:
                seen.append(spec)
                cls = _find(spec["class_path"], package, kind)
                _parse(cls, spec["init_args"])
                if unknown := spec.get("trainer", {}).keys() - inspect.signature(Trainer).parameters.keys():
                    msg = f"{cls.__name__}: Lightning's trainer has no argument {', '.join(sorted(unknown))}."
                    raise DskdError(msg)
                if taken := spec.get("trainer", {}).keys() & OWN_TRAINER_ARGUMENTS:
                    msg = (
                        f"{cls.__name__}: the benchmark itself gives the trainer {', '.join(sorted(taken))}. A model "
                        "is trained on one device; how long, epochs or steps beside its class_path say."
                    )
                    raise DskdError(msg)
                if key == "model" and cls.__name__ not in RECIPES and (spec["epochs"], spec["steps"]) == (None, None):
                    msg = (
                        f"{cls.__name__}: no published length of training is known here ({', '.join(RECIPES)} have "
                        "one). Give epochs or steps; epochs: 1 for a model that is fitted in one pass."
                    )
                    raise DskdError(msg)


def prepare_data(cell: Cell) -> AnomalibDataModule:
    """Set up a cell's data, of which no test image can reach training or validation.

    Validation images are normal ones held out of training; which, and which share of either is used, depends neither on
    the model nor on its seed.

    Args:
        cell: The cell.

    Returns:
        Data module that is set up.

    Raises:
        DskdError: If there is no such data module, it has no such argument, it draws its test defects, or no image is
            held out.
        DataError: If images are absent.
    """
    spec = cell.config["data"]
    cls = _find(spec["class_path"], anomalib.data, AnomalibDataModule)
    init_args = {
        "num_workers": 0,  # on the CPU workers cost more than they bring
        **spec["init_args"],
        "train_batch_size": cell.config["model"]["batch_size"],
        "eval_batch_size": EVAL_BATCH_SIZE,
    }
    split = {
        "val_split_mode": ValSplitMode.FROM_TRAIN.value,
        "val_split_ratio": cell.config["hold_out"],
        "seed": SPLIT_SEED,
    }
    accepted = inspect.signature(cls).parameters
    init_args |= {name: value for name, value in split.items() if name in accepted}
    data = cls(**_parse(cls, init_args))
    data.prepare_data()
    data.setup(TrainerFn.FITTING)
    if isinstance(data.test_data, SyntheticAnomalyDataset):
        msg = (
            f"{class_name(spec['class_path'])} draws its test defects, anew for each model, so that none could be "
            "compared: give it test images (test_split_mode from_dir, and a folder of defects)."
        )
        raise DskdError(msg)
    if not len(data.val_data):
        msg = (
            f"hold_out={cell.config['hold_out']} of {len(data.train_data)} normal training images is none: thresholds "
            "need some that were not trained on. Give a larger hold_out, or more images."
        )
        raise DskdError(msg)
    tested = set(data.test_data.samples.image_path)
    if data.val_data.has_anomalous or tested & {*data.train_data.samples.image_path, *data.val_data.samples.image_path}:
        msg = f"{class_name(spec['class_path'])} trains or validates on test images: give it another val_split_mode."
        raise DskdError(msg)
    if cell.fraction < 1:  # of those held out too, from which a model may learn what is usual
        data.train_data, data.val_data = (_share(each, cell.fraction) for each in (data.train_data, data.val_data))
    return data


def _share(dataset: AnomalibDataset, fraction: float) -> AnomalibDataset:
    number = max(1, round(fraction * len(dataset)))
    order = np.random.default_rng(SPLIT_SEED).permutation(len(dataset))
    return dataset.subsample(sorted(order[:number].tolist()))


def prepare_model(cell: Cell) -> PreparedModel:
    """Build a cell's model with the benchmark's teacher and input size.

    A model that has an argument ``backbone`` gets the teacher's name and, where it asks timm for pre-trained weights,
    the teacher's file; its layers, where it names those of a ResNet, become those of the same strides. Images are
    resized and normalised alike for all models that take the teacher. A model that has a seed of its own, as Dskd,
    gets the cell's, unless its arguments give one.

    Args:
        cell: The cell.

    Returns:
        The model; with random weights and its own backbone where it cannot take the teacher.

    Raises:
        DskdError: If there is no such model, it has no such argument, or the teacher's file does not fit.
    """
    spec, teacher = cell.config["model"], cell.config["teacher"]
    image_size = tuple(cell.config["image_size"])
    cls = _find(spec["class_path"], anomalib.models, AnomalibModule)
    parameters = inspect.signature(cls).parameters
    init_args = _parse(cls, spec["init_args"])
    if "seed" in parameters:
        init_args = {"seed": cell.seed, **init_args}
    if "backbone" not in parameters:
        reason = f"{cls.__name__} has no backbone to choose, it brings its own"
        return _without_teacher(cls, init_args, image_size, reason)
    if reason := _other_teacher(spec["init_args"], teacher):
        return _without_teacher(cls, init_args, image_size, f"{cls.__name__} is configured with {reason}")
    backbone = teacher["backbone"]
    with_teacher = {
        **init_args,
        "backbone": backbone,
        "visualizer": False,
        "pre_processor": Dskd.configure_pre_processor(image_size, backbone),
    }
    if "teacher_weights" in parameters:
        with_teacher |= {"teacher_weights": teacher["weights"], "image_size": image_size}
        return PreparedModel(cls(**with_teacher))
    if "layers" in parameters and "layers" not in spec["init_args"]:
        with_teacher["layers"] = _same_strides(parameters["layers"].default, backbone)
    is_file = teacher["weights"] not in {None, RANDOM}
    if teacher["weights"] == RANDOM and "pre_trained" in parameters:
        with_teacher["pre_trained"] = False
    with local_weights({backbone: teacher["weights"]} if is_file else {}) as filled:
        try:
            model = cls(**with_teacher)
            _try(model, image_size)
        except (DskdError, OSError, MemoryError, torch.OutOfMemoryError):  # no network or memory: another time it may
            raise
        except Exception as error:  # noqa: BLE001  # models say in many ways that they do not know a backbone
            reason = f"{cls.__name__} cannot be built on {backbone}: {type(error).__name__}: {error}"
            return _without_teacher(cls, init_args, image_size, reason)
    if is_file and not filled:
        return _without_teacher(cls, init_args, image_size, f"{cls.__name__} asked timm for no pre-trained weights")
    return PreparedModel(model)


def _other_teacher(init_args: dict[str, Any], teacher: dict[str, Any]) -> str:
    """Return which of a model's own arguments would give it another teacher than the benchmark's; empty if none."""
    own = {"backbone": teacher["backbone"], "teacher_weights": teacher["weights"], "pre_trained": True}
    if teacher["weights"] == RANDOM:
        own["pre_trained"] = False
    differing = [f"{name}={init_args[name]}" for name, value in own.items() if init_args.get(name, value) != value]
    return ", ".join(differing) + f" and not the benchmark's {teacher['backbone']}" if differing else ""


def load_trained(cell: Cell, checkpoint: Path) -> AnomalibModule:
    """Build a cell's model again and load what was trained.

    Args:
        cell: The cell.
        checkpoint: Its checkpoint; where there is none, the model is returned as it was before its training.

    Returns:
        The model on the CPU.
    """
    model = prepare_model(cell).model
    if checkpoint.is_file():
        with anomalib_safe_globals(extra=model.checkpoint_safe_globals()):
            saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        model.on_load_checkpoint(saved)
        model.load_state_dict(saved["state_dict"])
    return model


def _without_teacher(
    cls: type[AnomalibModule], init_args: dict[str, Any], image_size: tuple[int, int], reason: str
) -> PreparedModel:
    own = {"visualizer": False, "pre_processor": cls.configure_pre_processor(image_size=image_size), **init_args}
    if "pre_trained" in inspect.signature(cls).parameters:
        own["pre_trained"] = False
    try:
        return PreparedModel(cls(**own), obstacle=reason.splitlines()[0])
    except Exception as error:
        msg = f"{reason}; nor can it be built without: {type(error).__name__}: {error}"
        raise DskdError(msg) from error


def _try(model: AnomalibModule, image_size: tuple[int, int]) -> None:
    """Send two images through a copy as in training: some models fit a backbone only in name."""
    copy = deepcopy(model)
    with torch.no_grad():
        copy.model.train()(torch.rand(2, 3, *image_size))


def _same_strides(layers: list[str], backbone: str) -> list[str]:
    """Translate the layers of a ResNet into those of a backbone at the same strides."""
    info = build_backbone(backbone).feature_info
    if set(layers) <= set(info.module_name()):
        return list(layers)
    names = dict(zip(info.reduction(), info.module_name(), strict=True))
    strides = {f"layer{number}": 2 ** (number + 1) for number in range(1, 5)}
    return [names[strides[layer]] for layer in layers if strides.get(layer) in names]


def _find(class_path: str, package: Any, kind: type) -> Any:  # noqa: ANN401
    """Import a class by its path, or by its name in one of anomalib's packages."""
    module_name, _, name = class_path.rpartition(".")
    try:
        cls = getattr(import_module(module_name) if module_name else package, name)
    except (ImportError, AttributeError) as error:
        msg = f"There is no {class_path}: {error}. Give a name in {package.__name__} or a full class path."
        raise DskdError(msg) from error
    if not (isinstance(cls, type) and issubclass(cls, kind)):
        msg = f"{class_path} is no {kind.__name__}."
        raise DskdError(msg)
    return cls


def _parse(cls: type, init_args: dict[str, Any]) -> dict[str, Any]:
    """Give arguments that come from a file the types that the class asks for, as anomalib's command does."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "init_args", instantiate=False, fail_untyped=False)
    try:
        parsed = parser.instantiate_classes(parser.parse_object({"init_args": init_args}))
    except ArgumentError as error:
        msg = f"{class_name(cls.__name__)}: {error}"
        raise DskdError(msg) from error
    return {name: value for name, value in parsed.init_args.as_dict().items() if name in init_args}
