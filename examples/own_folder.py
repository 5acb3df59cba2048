# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""A folder of good parts and nothing else: train, set the threshold for a false-alarm rate, judge new images.

python examples/own_folder.py --good PARTS/good --new PARTS/new
"""

from anomalib.data import Folder, PredictDataset
from anomalib.engine import Engine
from anomalib.models import Dskd
from jsonargparse import auto_cli


def main(
    good: str,
    new: str,
    false_alarm_rate: float = 0.01,
    backbone: str = "tf_efficientnet_lite0",
    teacher_weights: str | None = "efficientnet_lite0",
    training_steps: int = 300,
    image_size: int = 256,
) -> None:
    """Train and judge.

    Args:
        good: Folder of images of good parts; a fifth is held out to set the threshold.
        new: Folder of images to judge.
        false_alarm_rate: Share of good parts that may be called defective.
        backbone: timm model of the teacher.
        teacher_weights: As in ``Dskd``.
        training_steps: Optimizer steps.
        image_size: Height and width of the network's input in pixels.
    """
    data = Folder("parts", normal_dir=good, val_split_mode="from_train", val_split_ratio=0.2, test_split_mode="none")
    model = Dskd(
        backbone=backbone,
        teacher_weights=teacher_weights,
        training_steps=training_steps,
        image_size=image_size,
        false_alarm_rate=false_alarm_rate,
    )
    engine = Engine()
    engine.fit(model, datamodule=data)
    print(f"threshold {model.post_processor.image_threshold:.3f} on raw scores")
    for batch in engine.predict(model, dataset=PredictDataset(new), ckpt_path=engine.best_model_path):
        for item in batch:
            verdict = "NG" if item.pred_label else "OK"
            print(f"{verdict}  raw score {item.raw_score:.3f}  {item.image_path}")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)

# python examples/own_folder.py --good PARTS/good --new PARTS/new --image_size 192 --training_steps 60, with the bricks:
# Prints:
# threshold 3.739 on raw scores
# NG  raw score 10.798  /.../PARTS/new/000.png
# NG  raw score 10.264  /.../PARTS/new/001.png
