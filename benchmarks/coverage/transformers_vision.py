"""Vision: classification, segmentation, detection, depth, video."""

from typing import Any

import torch
from benchmarks.coverage.transformers_tiny import LABELS, VISION, Tiny, image


def classifier(name: str, prefix: str, side: int = 40, **config: Any) -> Tiny:
    """Make an image classifier configured like ViT."""
    return Tiny(name, f"{prefix}ForImageClassification", VISION | config, image(side))


def staged(name: str, prefix: str, side: int = 65, **config: Any) -> Tiny:
    """Make an image classifier with stages and a configuration of its own."""
    return Tiny(
        name, f"{prefix}ForImageClassification", {"num_labels": LABELS} | config, image(side)
    )


def video(frames: int) -> dict[str, Any]:
    """Two clips (batch, frames, 3, 40, 40)."""
    return {"pixel_values": torch.randn(2, frames, 3, 40, 40)}


def resnet_backbone() -> Any:
    from transformers import ResNetConfig

    return ResNetConfig(
        embedding_size=8,
        hidden_sizes=[12, 16, 24, 32],
        depths=[1, 1, 1, 1],
        out_features=["stage4"],
    )


def detr(name: str, network: str, **extra: Any) -> Tiny:
    """Make a detector of the DETR family on a small ResNet."""

    def config() -> Any:
        import transformers

        return getattr(transformers, network).config_class(
            use_timm_backbone=False,
            backbone=None,
            use_pretrained_backbone=False,
            backbone_config=resnet_backbone(),
            d_model=48,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=6,
            decoder_attention_heads=6,
            encoder_ffn_dim=80,
            decoder_ffn_dim=72,
            num_queries=5,
            num_labels=LABELS,
            **extra,
        )

    return Tiny(name, network, config, image(65))


def dpt() -> Any:
    from transformers import DPTConfig

    return DPTConfig(
        **VISION | {"image_size": 48, "num_hidden_layers": 4},
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 16, 24, 32],
        fusion_hidden_size=16,
        readout_type="project",
    )


def depth_anything() -> Any:
    from transformers import DepthAnythingConfig, Dinov2Config

    return DepthAnythingConfig(
        backbone_config=Dinov2Config(
            **VISION,
            out_features=["stage1", "stage2"],
            apply_layernorm=True,
            reshape_hidden_states=False,
        ),
        patch_size=8,
        reassemble_hidden_size=48,
        reassemble_factors=[2, 1],
        neck_hidden_sizes=[12, 24],
        fusion_hidden_size=16,
        head_hidden_size=8,
    )


def upernet() -> Any:
    from transformers import ConvNextConfig, UperNetConfig

    return UperNetConfig(
        backbone_config=ConvNextConfig(
            hidden_sizes=[8, 16, 24, 32],
            depths=[1, 1, 1, 1],
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        hidden_size=24,
        pool_scales=[1, 2],
        auxiliary_channels=12,
        auxiliary_in_channels=24,
        num_labels=LABELS,
    )


STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}
SWIN = {
    "image_size": 48,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}

MODELS = [
    classifier("vit", "ViT"),
    classifier("deit", "DeiT"),
    classifier("beit_relative", "Beit", use_relative_position_bias=True),
    classifier("data2vec_vision", "Data2VecVision", use_shared_relative_position_bias=True),
    classifier("dinov2", "Dinov2"),
    classifier("dinov2_registers_swiglu", "Dinov2WithRegisters", use_swiglu_ffn=True),
    Tiny("dinov3_rotary", "DINOv3ViTModel", VISION | {"num_register_tokens": 2}, image()),
    classifier("ijepa", "IJepa"),
    classifier("vit_msn", "ViTMSN"),
    Tiny(
        "vit_mae",
        "ViTMAEForPreTraining",
        VISION
        | {
            "decoder_hidden_size": 24,
            "decoder_num_attention_heads": 4,
            "decoder_num_hidden_layers": 1,
            "decoder_intermediate_size": 40,
            "mask_ratio": 0.5,
        },
        lambda: image()() | {"noise": torch.rand(2, 25)},
    ),
    Tiny("swin", "SwinForImageClassification", SWIN | {"num_labels": LABELS}, image(48)),
    Tiny("swinv2", "Swinv2ForImageClassification", SWIN | {"num_labels": LABELS}, image(48)),
    Tiny(
        "swin2sr_super_resolution",
        "Swin2SRForImageSuperResolution",
        SWIN | {"patch_size": 1, "image_size": 16, "upscale": 2},
        image(16),
    ),
    staged("convnext", "ConvNext", **STAGES),
    staged("convnextv2_grn", "ConvNextV2", **STAGES),
    staged(
        "resnet",
        "ResNet",
        embedding_size=8,
        hidden_sizes=[16, 32],
        depths=[1, 2],
        layer_type="basic",
    ),
    staged("resnet_bottleneck", "ResNet", embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2]),
    staged(
        "regnet", "RegNet", embedding_size=8, groups_width=8, hidden_sizes=[16, 32], depths=[1, 2]
    ),
    staged(
        "bit_weight_standardised",
        "Bit",
        embedding_size=8,
        hidden_sizes=[16, 32],
        depths=[1, 2],
        num_groups=4,
    ),
    staged("mobilenet_v1", "MobileNetV1", depth_multiplier=0.25),
    staged("mobilenet_v2", "MobileNetV2", depth_multiplier=0.35),
    staged(
        "efficientnet",
        "EfficientNet",
        width_coefficient=0.25,
        depth_coefficient=0.25,
        hidden_dim=320,
    ),
    staged("poolformer", "PoolFormer", **STAGES),
    staged(
        "mobilevit",
        "MobileViT",
        side=64,
        image_size=64,
        hidden_sizes=[24, 32, 40],
        neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 96],
    ),
    staged("mobilevitv2", "MobileViTV2", side=64, image_size=64, width_multiplier=0.25),
    staged(
        "levit",
        "Levit",
        side=64,
        image_size=64,
        hidden_sizes=[16, 24, 32],
        num_attention_heads=[2, 3, 4],
        depths=[1, 1, 1],
        key_dim=[8, 8, 8],
    ),
    staged("cvt", "Cvt", side=64, embed_dim=[16, 24, 32], num_heads=[1, 2, 4], depth=[1, 2, 3]),
    staged(
        "pvt",
        "Pvt",
        side=64,
        image_size=64,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 3, 4],
    ),
    staged(
        "pvt_v2",
        "PvtV2",
        side=64,
        image_size=64,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 3, 4],
    ),
    staged(
        "focalnet",
        "FocalNet",
        side=64,
        image_size=64,
        embed_dim=16,
        depths=[1, 1],
        focal_levels=[2, 2],
        focal_windows=[3, 3],
    ),
    staged(
        "hiera",
        "Hiera",
        side=64,
        image_size=[64, 64],
        embed_dim=16,
        depths=[1, 1, 1],
        num_heads=[1, 2, 4],
        masked_unit_size=[4, 4],
        query_stride=[2, 2],
        num_query_pool=2,
    ),
    staged(
        "swiftformer",
        "SwiftFormer",
        side=64,
        image_size=64,
        embed_dims=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
    ),
    Tiny(
        "segformer",
        "SegformerForSemanticSegmentation",
        {
            "hidden_sizes": [8, 16, 24, 32],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 3, 4],
            "decoder_hidden_size": 20,
            "num_labels": LABELS,
        },
        image(65),
    ),
    Tiny("upernet", "UperNetForSemanticSegmentation", upernet, image(65)),
    Tiny("dpt_depth", "DPTForDepthEstimation", dpt, image(48)),
    Tiny("depth_anything", "DepthAnythingForDepthEstimation", depth_anything, image(40)),
    Tiny(
        "glpn_depth",
        "GLPNForDepthEstimation",
        {
            "hidden_sizes": [8, 16, 24, 32],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 3, 4],
            "decoder_hidden_size": 20,
        },
        image(64),
    ),
    Tiny("yolos", "YolosForObjectDetection", VISION | {"image_size": [40, 40]}, image(40)),
    detr("detr", "DetrForObjectDetection"),
    detr("conditional_detr", "ConditionalDetrForObjectDetection"),
    Tiny(
        "videomae",
        "VideoMAEForVideoClassification",
        VISION | {"num_frames": 4, "tubelet_size": 2},
        lambda: video(4),
    ),
    Tiny(
        "timesformer",
        "TimesformerForVideoClassification",
        VISION | {"num_frames": 3},
        lambda: video(3),
    ),
    Tiny(
        "vivit",
        "VivitForVideoClassification",
        VISION | {"num_frames": 4, "tubelet_size": [2, 8, 8]},
        lambda: video(4),
    ),
]
