"""Encoder-decoders, audio, multimodal, time series."""

from typing import Any

import torch
from benchmarks.coverage.transformers_tiny import (
    DECODER,
    ENCODER,
    GROUPED,
    LABELS,
    SEQ2SEQ,
    SPECIAL,
    VISION,
    VOCABULARY,
    Tiny,
    image,
    text,
    text_and_image,
    text_to_text,
    token_ids,
)

T5 = SPECIAL | {
    "vocab_size": VOCABULARY,
    "d_model": 48,
    "d_kv": 8,
    "d_ff": 80,
    "num_layers": 2,
    "num_heads": 6,
    "decoder_start_token_id": 0,
    "use_cache": False,
}
SPEECH = SPECIAL | {
    "vocab_size": 30,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "intermediate_size": 80,
    "conv_dim": (12, 16, 20),
    "conv_stride": (5, 4, 2),
    "conv_kernel": (10, 8, 4),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


def seq2seq(name: str, network: str, **config: Any) -> Tiny:
    """Make an encoder-decoder configured like BART."""
    return Tiny(name, network, SEQ2SEQ | config, text_to_text)


def speech(name: str, network: str, **config: Any) -> Tiny:
    """Make a speech recogniser configured like wav2vec 2.0."""
    return Tiny(name, network, SPEECH | config, waveform)


def waveform() -> dict[str, Any]:
    """Two quarter-second recordings."""
    return {"input_values": torch.randn(2, 3999)}


def two_towers(name: str, network: str, text_extra: dict | None = None, **extra: Any) -> Tiny:
    """Make a contrastive image-text model of a text and a vision configuration."""
    config = {
        "text_config": ENCODER | {"projection_dim": 20} | (text_extra or {}),
        "vision_config": VISION | {"projection_dim": 20},
        "projection_dim": 20,
    }
    return Tiny(name, network, config | extra, text_and_image())


def with_mask() -> dict[str, Any]:
    """Text, image and the mask of its valid pixels."""
    return text_and_image()() | {"pixel_mask": torch.ones(2, 40, 40, dtype=torch.long)}


def regions() -> dict[str, Any]:
    """Text and the features of detected regions."""
    return text() | {"visual_feats": torch.randn(2, 5, 20), "visual_pos": torch.rand(2, 5, 4)}


def llava() -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    return LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION, projection_dim=20),
        text_config=LlamaConfig(**GROUPED),
        image_token_index=98,
        vision_feature_layer=-1,
    )


def paligemma() -> Any:
    from transformers import GemmaConfig, PaliGemmaConfig, SiglipVisionConfig

    return PaliGemmaConfig(
        vision_config=SiglipVisionConfig(**VISION, projection_dim=48),
        text_config=GemmaConfig(**GROUPED, head_dim=8),
        image_token_index=98,
        projection_dim=48,
    )


def image_tokens() -> dict[str, Any]:
    """A prompt of 25 image tokens (as many as patches) and words, and the images."""
    words = torch.randint(3, 90, (2, 6))
    return {
        "input_ids": torch.cat([torch.full((2, 25), 98), words], 1),
        "attention_mask": torch.ones(2, 31, dtype=torch.long),
    } | image()()


def vision_encoder_decoder() -> Any:
    from transformers import TrOCRConfig, VisionEncoderDecoderConfig, ViTConfig

    decoder = TrOCRConfig(
        vocab_size=VOCABULARY,
        d_model=48,
        decoder_layers=2,
        decoder_attention_heads=6,
        decoder_ffn_dim=80,
        max_position_embeddings=40,
        use_cache=False,
        is_decoder=True,
        add_cross_attention=True,
        cross_attention_hidden_size=40,
    )
    encoder = ViTConfig(**VISION | {"hidden_size": 40, "num_attention_heads": 5})
    return VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)


def clap_audio() -> dict[str, Any]:
    """Caption and mel spectrogram."""
    return text() | {
        "input_features": torch.randn(2, 1, 64, 16),
        "is_longer": torch.zeros(2, 1, dtype=torch.bool),
    }


MODELS = [
    Tiny("t5", "T5ForConditionalGeneration", T5, text_to_text),
    Tiny(
        "t5_gated_untied",
        "T5ForConditionalGeneration",
        T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        text_to_text,
    ),
    Tiny("umt5", "UMT5ForConditionalGeneration", T5, text_to_text),
    Tiny("longt5", "LongT5ForConditionalGeneration", T5 | {"local_radius": 3}, text_to_text),
    Tiny(
        "switch_transformers_moe",
        "SwitchTransformersForConditionalGeneration",
        T5 | {"num_experts": 3, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
        text_to_text,
    ),
    seq2seq("bart", "BartForConditionalGeneration"),
    seq2seq("mbart", "MBartForConditionalGeneration"),
    seq2seq("marian", "MarianMTModel", decoder_vocab_size=VOCABULARY),
    seq2seq("pegasus", "PegasusForConditionalGeneration"),
    seq2seq("blenderbot", "BlenderbotForConditionalGeneration"),
    seq2seq("m2m_100", "M2M100ForConditionalGeneration"),
    seq2seq("plbart", "PLBartForConditionalGeneration"),
    seq2seq("led_window", "LEDForConditionalGeneration", attention_window=4),
    Tiny(
        "prophetnet",
        "ProphetNetForConditionalGeneration",
        SPECIAL
        | {
            "vocab_size": VOCABULARY,
            "hidden_size": 48,
            "encoder_ffn_dim": 80,
            "decoder_ffn_dim": 72,
            "num_encoder_layers": 2,
            "num_decoder_layers": 2,
            "num_encoder_attention_heads": 6,
            "num_decoder_attention_heads": 6,
            "use_cache": False,
        },
        text_to_text,
    ),
    # Audio
    Tiny(
        "whisper",
        "WhisperForConditionalGeneration",
        SEQ2SEQ
        | {
            "num_mel_bins": 16,
            "max_source_positions": 29,
            "max_target_positions": 32,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
        },
        lambda: {"input_features": torch.randn(2, 16, 58), "decoder_input_ids": token_ids(7)},
    ),
    Tiny(
        "speech_to_text",
        "Speech2TextForConditionalGeneration",
        SEQ2SEQ
        | {
            "input_feat_per_channel": 16,
            "conv_channels": 24,
            "max_source_positions": 60,
            "max_target_positions": 32,
        },
        lambda: {"input_features": torch.randn(2, 37, 16), "decoder_input_ids": token_ids(7)},
    ),
    Tiny(
        "moonshine",
        "MoonshineForConditionalGeneration",
        SPECIAL
        | {
            "vocab_size": VOCABULARY,
            "hidden_size": 48,
            "intermediate_size": 80,
            "encoder_num_hidden_layers": 2,
            "decoder_num_hidden_layers": 2,
            "encoder_num_attention_heads": 6,
            "decoder_num_attention_heads": 6,
            "decoder_start_token_id": 1,
            "use_cache": False,
        },
        lambda: waveform() | {"decoder_input_ids": token_ids(7)},
    ),
    speech("wav2vec2", "Wav2Vec2ForCTC"),
    speech(
        "wav2vec2_stable_layer_norm",
        "Wav2Vec2ForCTC",
        do_stable_layer_norm=True,
        feat_extract_norm="layer",
    ),
    speech("wav2vec2_conformer", "Wav2Vec2ConformerForCTC", position_embeddings_type="relative"),
    speech("hubert", "HubertForCTC"),
    speech("wavlm_gated_bias", "WavLMForCTC"),
    speech("unispeech_sat", "UniSpeechSatForCTC"),
    speech("sew_squeezed", "SEWForCTC", squeeze_factor=2),
    speech("data2vec_audio", "Data2VecAudioForCTC"),
    Tiny(
        "audio_spectrogram_transformer",
        "ASTForAudioClassification",
        VISION | {"frequency_stride": 6, "time_stride": 6, "max_length": 32, "num_mel_bins": 20},
        lambda: {"input_values": torch.randn(2, 32, 20)},
    ),
    Tiny(
        "encodec",
        "EncodecModel",
        {
            "num_filters": 4,
            "hidden_size": 16,
            "codebook_size": 16,
            "codebook_dim": 16,
            "upsampling_ratios": [4, 2],
            "num_lstm_layers": 1,
            "target_bandwidths": [24.0],
        },
        lambda: {"input_values": torch.randn(2, 1, 400)},
    ),
    Tiny(
        "univnet_vocoder",
        "UnivNetModel",
        {
            "model_in_channels": 8,
            "model_hidden_channels": 8,
            "num_mel_bins": 12,
            "resblock_stride_sizes": [2, 2],
            "resblock_kernel_sizes": [3, 3],
            "resblock_dilation_sizes": [[1, 3], [1, 3]],
            "kernel_predictor_hidden_channels": 8,
        },
        lambda: {"input_features": torch.randn(2, 9, 12), "noise_sequence": torch.randn(2, 9, 8)},
    ),
    # Multimodal
    two_towers("clip", "CLIPModel"),
    two_towers("siglip", "SiglipModel", {"projection_size": 48}),
    two_towers("chinese_clip", "ChineseCLIPModel"),
    two_towers("owlvit", "OwlViTModel"),
    two_towers("blip", "BlipModel", {"encoder_hidden_size": 48}, image_text_hidden_size=20),
    Tiny(
        "vilt",
        "ViltForImageAndTextRetrieval",
        ENCODER | {"image_size": 40, "patch_size": 8},
        with_mask,
    ),
    Tiny(
        "git",
        "GitForCausalLM",
        DECODER | {"vision_config": VISION, "num_image_with_embedding": None},
        text_and_image(),
    ),
    Tiny(
        "visual_bert",
        "VisualBertModel",
        ENCODER | {"visual_embedding_dim": 20},
        lambda: text() | {"visual_embeds": torch.randn(2, 5, 20)},
    ),
    Tiny(
        "lxmert",
        "LxmertModel",
        ENCODER | {"l_layers": 1, "r_layers": 1, "x_layers": 1, "visual_feat_dim": 20},
        regions,
    ),
    Tiny("llava", "LlavaForConditionalGeneration", llava, image_tokens),
    Tiny("paligemma", "PaliGemmaForConditionalGeneration", paligemma, image_tokens),
    Tiny(
        "trocr",
        "VisionEncoderDecoderModel",
        vision_encoder_decoder,
        lambda: image()() | {"decoder_input_ids": token_ids(7)},
    ),
    Tiny(
        "decision_transformer",
        "DecisionTransformerModel",
        {"state_dim": 5, "act_dim": 3, "hidden_size": 48, "n_layer": 2, "n_head": 6},
        lambda: {
            "states": torch.randn(2, 6, 5),
            "actions": torch.randn(2, 6, 3),
            "rewards": torch.randn(2, 6, 1),
            "returns_to_go": torch.randn(2, 6, 1),
            "timesteps": torch.arange(6).expand(2, 6),
            "attention_mask": torch.ones(2, 6),
        },
    ),
    # Time series
    Tiny(
        "patchtst",
        "PatchTSTForPrediction",
        {
            "num_input_channels": 3,
            "context_length": 30,
            "patch_length": 5,
            "patch_stride": 5,
            "prediction_length": 4,
            "d_model": 24,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "ffn_dim": 40,
        },
        lambda: {"past_values": torch.randn(2, 30, 3)},
    ),
    Tiny(
        "patchtsmixer",
        "PatchTSMixerForPrediction",
        {
            "num_input_channels": 3,
            "context_length": 30,
            "patch_length": 5,
            "patch_stride": 5,
            "prediction_length": 4,
            "d_model": 24,
            "num_layers": 2,
        },
        lambda: {"past_values": torch.randn(2, 30, 3)},
    ),
    Tiny(
        "tapas_table",
        "TapasForSequenceClassification",
        ENCODER | {"type_vocab_sizes": [3, 32, 32, 32, 32, 32, 32], "num_labels": LABELS},
        lambda: text() | {"token_type_ids": torch.randint(0, 3, (2, 11, 7))},
    ),
]
