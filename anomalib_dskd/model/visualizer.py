# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Pictures of what each student sees."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from anomalib.utils.path import generate_output_filename
from anomalib.visualization import ImageVisualizer
from anomalib.visualization.image.functional import (
    add_text_to_image,
    create_image_grid,
    visualize_anomaly_map,
    visualize_image,
    visualize_mask,
)
from PIL import Image

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from .batch import DskdBatch, DskdItem
    from .lightning_model import Dskd


class DskdVisualizer(ImageVisualizer):
    """anomalib's pictures in ``images``, and in ``students`` a row for each image that explains them.

    The row shows the image, the encoder's map, the decoder's map, the fused map, the mask and what was found. All maps
    share one scale: a student's map is drawn as the fused map would be if both students had seen the same, so that
    the colours of the three can be compared and the middle of the scale is the pixel threshold.
    Arguments are those of anomalib's :class:`~anomalib.visualization.ImageVisualizer`.
    """

    def on_test_batch_end(
        self,
        trainer: "Trainer",
        pl_module: "Dskd",
        outputs: "DskdBatch",
        batch: "DskdBatch",
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write both pictures of each image of the batch."""
        super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        datamodule = getattr(trainer, "datamodule", None)
        for item in batch:
            path = generate_output_filename(
                input_path=item.image_path or "",
                output_path=Path(self.output_dir).with_name("students"),
                dataset_name=getattr(datamodule, "name", None),
                category=getattr(datamodule, "category", None),
            )
            self.visualize_students(item, pl_module).save(path)

    def visualize_students(self, item: "DskdItem", model: "Dskd") -> Image.Image:
        """Draw one row: image, encoder's map, decoder's map, fused map, mask, what was found.

        Args:
            item: Predicted item, its raw student maps ``(H, W)`` and its post-processed anomaly map.
            model: Model that predicted it.

        Returns:
            Picture of one row of fields, each of ``field_size``.
        """
        image = Image.open(item.image_path).convert("RGB") if item.image_path else visualize_image(item.image)
        fields = {"Image": image}
        for student in ("encoder", "decoder"):
            student_map = getattr(item, f"{student}_map")
            if student_map is not None:
                fields[f"{student.title()} Map"] = _draw_map(model.on_fused_scale(student_map))
        fields["Anomaly Map"] = _draw_map(item.anomaly_map)
        for name in ("gt_mask", "pred_mask"):
            mask = getattr(item, name)
            if mask is not None:
                fields["Mask" if name == "gt_mask" else "Pred Mask"] = visualize_mask(mask.squeeze().float() > 0)
        row = [add_text_to_image(field.resize(self.field_size), name) for name, field in fields.items()]
        return create_image_grid(row, nrow=len(row))


def _draw_map(anomaly_map: torch.Tensor) -> Image.Image:
    return visualize_anomaly_map(anomaly_map.squeeze(), colormap=True, normalize=False)
