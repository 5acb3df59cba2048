# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Defects that are drawn on good images in training."""

import torch

from anomalib_dskd.model.synthetic_defects import draw_defects


def test_defects_are_parts_of_the_image():
    """Drawn on the share that was asked for, each on a part of its image, over many draws and an odd size."""
    torch.manual_seed(0)
    images = torch.randn(40, 3, 96, 70)
    kept = images.clone()
    drawn = draw_defects(images, share=0.5)
    assert torch.equal(images, kept)
    assert drawn.shape == images.shape
    assert drawn.dtype == images.dtype
    assert drawn.isfinite().all()
    touched = (drawn != images).any(dim=1).float().mean(dim=(-2, -1))
    assert 12 <= (touched > 0).sum() <= 28
    assert touched.max() < 0.75
    assert (drawn - images).abs().mean(dim=(1, 2, 3)).max() < 0.5


def test_none_and_all():
    torch.manual_seed(0)
    images = torch.randn(8, 3, 64, 64)
    assert torch.equal(draw_defects(images, share=0.0), images)
    assert (draw_defects(images, share=1.0) != images).any(dim=(1, 2, 3)).all()


def test_the_random_state_decides():
    images = torch.randn(2, 3, 64, 64)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(draw_defects(images, share=1.0))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_mixed_precision_draws_the_same():
    """Training on a CPU is best in bf16-mixed; what is drawn is not a matter of its precision."""
    images = torch.randn(4, 3, 64, 64)
    torch.manual_seed(0)
    drawn = draw_defects(images, share=1.0)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(draw_defects(images, share=1.0), drawn)
