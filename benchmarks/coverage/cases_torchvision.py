"""Every float model of torchvision: classification, segmentation, detection, video, optical flow.

The 13 ``quantized_*`` entries are left out: they are the float architectures of this list
with int8 observers, not further networks.
"""

from collections.abc import Iterator
from typing import Any

import torch
from benchmarks.coverage.case import Built, Case
from torch import Tensor
from torchvision import models

SET_OF_PACKAGE = {
    "segmentation": "segmentation",
    "detection": "detection",
    "video": "video",
    "optical_flow": "optical_flow",
}
HEAVY = {"regnet_y_128gf", "vit_h_14", "vit_l_16", "vit_l_32", "regnet_y_32gf", "regnet_x_32gf"}
# The smallest images the fixed parts allow (windows, position tables, un-padded poolings).
IMAGE = {"inception_v3": 97, "maxvit_t": 224}


def cases() -> Iterator[Case]:
    """Yield a case for every registered model that is not a quantized twin."""
    for name in models.list_models():
        package = models.get_model_builder(name).__module__.split(".")[2]
        if package == "quantization":
            continue
        yield Case(
            set=SET_OF_PACKAGE.get(package, "torchvision"),
            name=name,
            build=lambda name=name, package=package: build(name, package),
            heavy=name in HEAVY,
        )


def build(name: str, package: str) -> Built:
    """Build one model and inputs that fit it."""
    options: dict[str, Any] = {"weights": None}
    inputs: tuple[Any, ...]
    keywords: dict[str, Any] = {}
    side = IMAGE.get(name, 65)
    if package in ("segmentation", "detection"):
        options["weights_backbone"] = None
    if package == "detection":
        # Random weights score every class alike: without a threshold there are boxes to compare.
        if "rcnn" in name:
            options |= {"box_score_thresh": 0.0, "box_detections_per_img": 20}
            options |= {"rpn_pre_nms_top_n_test": 300, "rpn_post_nms_top_n_test": 100}
        else:
            options |= {"score_thresh": 0.0, "detections_per_img": 20, "topk_candidates": 50}
        if not name.startswith("ssd"):
            options |= {"min_size": 96, "max_size": 128}
        inputs = ([torch.rand(3, 97, 129), torch.rand(3, 120, 90)],)
    elif package == "video":
        if name == "s3d" or name.startswith("mvit"):
            inputs = (clip(16, 224, batch=1),)
        else:
            inputs = (clip(5, 49),)
    elif package == "optical_flow":
        inputs = (torch.rand(2, 3, 128, 136), torch.rand(2, 3, 128, 136))
        keywords["num_flow_updates"] = 2
    else:
        if name.startswith("vit"):
            side = 3 * int(name.split("_")[-1])
            options["image_size"] = side
        if name in ("googlenet", "inception_v3"):
            options["init_weights"] = False  # scipy's truncated normal takes a minute
        inputs = (torch.randn(2, 3, side, side),)
    return models.get_model(name, **options).eval(), inputs, keywords


def clip(frames: int, side: int, batch: int = 2) -> Tensor:
    """Random video of shape (batch, 3, frames, side, side)."""
    return torch.randn(batch, 3, frames, side, side)
