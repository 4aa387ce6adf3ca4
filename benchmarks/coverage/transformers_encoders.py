"""Text encoders."""

from typing import Any

import torch
from benchmarks.coverage.transformers_tiny import ENCODER, SPECIAL, VOCABULARY, Tiny, text


def classifier(name: str, prefix: str, **config: Any) -> Tiny:
    """Make a sequence classifier of the usual configuration with ``config`` on top."""
    return Tiny(name, f"{prefix}ForSequenceClassification", ENCODER | config, text)


def boxed_text() -> dict[str, Any]:
    """Token ids, each with a box on a page."""
    corner = torch.randint(0, 400, (2, 11, 2))
    return text() | {"bbox": torch.cat([corner, corner + torch.randint(1, 400, (2, 11, 2))], -1)}


MODELS = [
    classifier("bert", "Bert"),
    Tiny("bert_masked_lm_tied", "BertForMaskedLM", ENCODER, text),
    classifier("roberta", "Roberta"),
    classifier("roberta_prelayernorm", "RobertaPreLayerNorm"),
    classifier("xlm_roberta_xl", "XLMRobertaXL"),
    classifier("camembert", "Camembert"),
    Tiny(
        "distilbert",
        "DistilBertForSequenceClassification",
        {"vocab_size": VOCABULARY, "dim": 48, "n_layers": 2, "n_heads": 6, "hidden_dim": 80},
        text,
    ),
    classifier("albert_shared_layers", "Albert", embedding_size=20),
    classifier("electra", "Electra", embedding_size=20),
    classifier("deberta_relative", "Deberta", relative_attention=True, pos_att_type=["c2p", "p2c"]),
    classifier(
        "deberta_v2",
        "DebertaV2",
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=8,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
    ),
    classifier("mpnet", "MPNet"),
    classifier("modernbert", "ModernBert", cls_token_id=1, sep_token_id=2, local_attention=6),
    classifier("squeezebert", "SqueezeBert", embedding_size=48, q_groups=2, k_groups=2, v_groups=2),
    Tiny(
        "funnel",
        "FunnelForSequenceClassification",
        {
            "vocab_size": VOCABULARY,
            "block_sizes": [1, 2],
            "d_model": 48,
            "n_head": 6,
            "d_head": 8,
            "d_inner": 80,
        },
        text,
    ),
    classifier(
        "mobilebert",
        "MobileBert",
        embedding_size=20,
        intra_bottleneck_size=24,
        num_feedforward_networks=2,
        intermediate_size=40,
    ),
    classifier("roformer", "RoFormer", embedding_size=48),
    classifier("convbert", "ConvBert", embedding_size=24, head_ratio=2, conv_kernel_size=3),
    classifier("nystromformer", "Nystromformer", segment_means_seq_len=11, num_landmarks=11),
    classifier("big_bird_full", "BigBird", attention_type="original_full"),
    classifier("longformer", "Longformer", attention_window=4, sep_token_id=2),
    classifier("fnet", "FNet", tpu_short_seq_length=11),
    Tiny("layoutlm", "LayoutLMForSequenceClassification", ENCODER, boxed_text),
    Tiny(
        "lilt",
        "LiltForSequenceClassification",
        ENCODER | {"channel_shrink_ratio": 2, "max_2d_position_embeddings": 1024},
        boxed_text,
    ),
    classifier("ernie", "Ernie"),
    classifier("rembert", "RemBert", input_embedding_size=20),
    classifier("megatron_bert", "MegatronBert"),
    Tiny(
        "xlnet",
        "XLNetForSequenceClassification",
        SPECIAL
        | {"vocab_size": VOCABULARY, "d_model": 48, "n_layer": 2, "n_head": 6, "d_inner": 80},
        text,
    ),
    classifier("esm", "Esm", position_embedding_type="rotary", mask_token_id=3),
    classifier("ibert", "IBert"),
    Tiny("nomic_bert", "NomicBertForSequenceClassification", ENCODER, text),
    Tiny("luke", "LukeModel", ENCODER | {"entity_vocab_size": 20, "entity_emb_size": 20}, text),
    Tiny(
        "perceiver_text",
        "PerceiverForSequenceClassification",
        {
            "num_latents": 9,
            "d_latents": 48,
            "d_model": 40,
            "num_blocks": 1,
            "num_self_attends_per_block": 2,
            "num_self_attention_heads": 6,
            "num_cross_attention_heads": 4,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 40,
            "num_labels": 7,
        },
        lambda: {"inputs": text()["input_ids"]},
    ),
]
