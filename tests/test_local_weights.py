# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Local backbone weights for other models."""

import pytest
import timm
import torch
from anomalib.models import Cflow, Fastflow, Padim, Patchcore, ReverseDistillation, Stfpm
from safetensors.torch import save_file

from anomalib_dskd.errors import DskdError
from anomalib_dskd.local_weights import local_weights


@pytest.fixture(scope="module")
def cut_file(tmp_path_factory):
    """ResNet-18 to layer3, as torchvision names it."""
    torch.manual_seed(1)
    state = timm.create_model("resnet18").state_dict()
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file({name: value for name, value in state.items() if not name.startswith(("layer4", "fc"))}, path)
    return path


@pytest.mark.parametrize("model_class", [Stfpm, Patchcore, Padim, ReverseDistillation, Fastflow, Cflow])
def test_models_of_anomalib_take_them(model_class, cut_file):
    layers = {} if model_class is Fastflow else {"layers": ["layer1", "layer2", "layer3"]}
    with local_weights({"resnet18": cut_file}) as filled:
        model = model_class(backbone="resnet18", **layers)
    assert filled[0] == "resnet18"
    torch.manual_seed(1)
    expected = timm.create_model("resnet18").state_dict()
    state = model.state_dict()
    stems = [name for name in state if name.endswith("conv1.weight") and state[name].shape[-1] == 7]
    (stem,) = (name for name in stems if "student" not in name)
    prefix = stem.removesuffix("conv1.weight")
    for name in ("conv1.weight", "layer1.1.bn2.running_var", "layer3.0.conv1.weight"):
        torch.testing.assert_close(state[prefix + name], expected[name])


def test_a_layer_that_the_file_lacks_is_not_random(cut_file):
    with local_weights({"resnet18": cut_file}):
        short, whole = (
            timm.create_model("resnet18", pretrained=True, features_only=True, out_indices=indices)
            for indices in ((1, 2, 3), (4,))
        )
    images = torch.rand(1, 3, 64, 64)
    assert len(short(images)) == 3
    with pytest.raises(DskdError, match=r"layer4 of resnet18 is used but has no weights: .*resnet18.safetensors"):
        whole(images)


def test_other_architectures_and_errors(cut_file, tmp_path):
    with (
        local_weights({"resnet18.a1_in1k": cut_file}) as filled,
        pytest.raises(Exception, match=r"(?i)resnet34|offline|connect|hub"),
    ):
        timm.create_model("resnet34", pretrained=True)
    assert filled == []
    with pytest.raises(DskdError, match="no file"), local_weights({"resnet18": tmp_path / "none.safetensors"}):
        pass
    with local_weights({"resnet34": cut_file}), pytest.raises(DskdError, match="does not fit backbone='resnet34'"):
        timm.create_model("resnet34", pretrained=True)
    with pytest.raises(Exception, match=r"(?i)resnet18|offline|connect|hub"):
        timm.create_model("resnet18", pretrained=True)
