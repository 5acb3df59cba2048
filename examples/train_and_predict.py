# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""From a folder in MVTec AD's layout to metrics and each student's map, in Python.

python examples/train_and_predict.py --root datasets/MVTecAD --category toothbrush
"""

from anomalib.data import MVTec
from anomalib.engine import Engine
from anomalib.models import Dskd
from jsonargparse import auto_cli


def main(
    root: str = "./datasets/MVTecAD",
    category: str = "bottle",
    teacher_weights: str | None = None,
    training_steps: int = 300,
    image_size: int = 256,
    num_workers: int = 0,
) -> None:
    """Train, test, and predict.

    Args:
        root: Folder that holds the categories.
        category: Name of the category.
        teacher_weights: As in ``Dskd``; by default timm's pre-trained weights.
        training_steps: Optimizer steps.
        image_size: Height and width of the network's input in pixels.
        num_workers: Processes that load images.
    """
    data = MVTec(root, category, num_workers=num_workers)
    model = Dskd(teacher_weights=teacher_weights, training_steps=training_steps, image_size=image_size)
    engine = Engine()
    engine.train(model, datamodule=data)

    for batch in engine.predict(model, datamodule=data, ckpt_path=engine.best_model_path):
        for item in batch:
            print(
                f"{item.image_path}: score {item.pred_score:.3f}, {'NG' if item.pred_label else 'OK'}, "
                f"encoder's map up to {item.encoder_map.max():.3f}, decoder's up to {item.decoder_map.max():.3f}"
            )
    print(f"checkpoint: {engine.best_model_path}")


if __name__ == "__main__":
    auto_cli(main)

# Prints:
# /.../DemoTextures/brick/test/stain/007.png: score 0.504, NG, encoder's map up to 1.307, decoder's up to 0.815
# checkpoint: /.../results/Dskd/MVTec/brick/v0/weights/lightning/model.ckpt
