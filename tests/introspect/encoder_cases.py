"""Small configs of encoders and encoder-decoders that transformers can build: (class, config) pairs."""

from __future__ import annotations

from collections.abc import Iterable

Case = tuple[str, dict[str, object]]

BERT: dict[str, object] = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
}
DEBERTA_V3 = {
    **BERT,
    "relative_attention": True,
    "position_buckets": 16,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
}
DEBERTA_V2 = {
    **BERT,
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "conv_kernel_size": 3,
    "type_vocab_size": 2,
}
DISTILBERT = {
    "vocab_size": 1000,
    "dim": 64,
    "hidden_dim": 96,
    "n_layers": 3,
    "n_heads": 4,
    "max_position_embeddings": 40,
}
TOKENS = {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2}
IMAGE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
SPEECH = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "conv_dim": [32] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
BART = {
    "vocab_size": 100,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 20,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "bos_token_id": 0,
    "forced_eos_token_id": 2,
}
T5 = {
    "vocab_size": 100,
    "d_model": 16,
    "d_kv": 12,
    "d_ff": 32,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 2,
}
WHISPER = {
    **{key: value for key, value in BART.items() if key not in ("max_position_embeddings", "forced_eos_token_id")},
    "num_mel_bins": 8,
    "max_source_positions": 30,
    "max_target_positions": 12,
}
HEADS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")


def classes(family: str, model_type: str, keys: dict[str, object], suffixes: Iterable[str]) -> list[Case]:
    return [(f"{family}{suffix}", {"model_type": model_type, **keys}) for suffix in ("Model", *suffixes)]


TEXT_ENCODERS: list[Case] = [
    *classes("Bert", "bert", BERT, (*HEADS, "ForPreTraining", "LMHeadModel", "ForNextSentencePrediction")),
    ("BertForMaskedLM", {"model_type": "bert", **BERT, "tie_word_embeddings": False}),
    *classes("Bert", "bert", BERT, ("ForMultipleChoice",))[1:],
    *classes("Roberta", "roberta", BERT, (*HEADS, "ForCausalLM", "ForMultipleChoice")),
    *classes("XLMRoberta", "xlm-roberta", {**BERT, "type_vocab_size": 1}, HEADS),
    *classes("MPNet", "mpnet", BERT, (*HEADS, "ForMultipleChoice")),
    *classes("DistilBert", "distilbert", DISTILBERT, (*HEADS, "ForMultipleChoice")),
    *classes("Electra", "electra", {**BERT, "embedding_size": 32}, (*HEADS, "ForPreTraining")),
    *classes("DebertaV2", "deberta-v2", DEBERTA_V3, (*HEADS, "ForMultipleChoice")),
    *classes("DebertaV2", "deberta-v2", DEBERTA_V2, HEADS),
    *classes("ModernBert", "modernbert", {**BERT, **TOKENS}, HEADS),
    *classes("NomicBert", "nomic_bert", {**BERT, "type_vocab_size": 2}, HEADS[:3]),
]

MEDIA_ENCODERS: list[Case] = [
    *classes("ViT", "vit", IMAGE, ("ForImageClassification",)),
    ("ViTForImageClassification", {"model_type": "vit", **IMAGE, "qkv_bias": False, "num_labels": 7}),
    *(
        case
        for gated in (False, True)
        for case in classes(
            "Dinov2",
            "dinov2",
            {**{key: value for key, value in IMAGE.items() if key != "intermediate_size"}, "use_swiglu_ffn": gated},
            ("ForImageClassification",),
        )
    ),
    *classes("Dinov2WithRegisters", "dinov2_with_registers", IMAGE, ("ForImageClassification",)),
    ("CLIPModel", {"model_type": "clip", "text_config": BERT, "vision_config": IMAGE, "projection_dim": 24}),
    ("CLIPModel", {"model_type": "clip"}),
    *classes("CLIPText", "clip_text_model", BERT, ("ModelWithProjection",)),
    *classes("CLIPVision", "clip_vision_model", IMAGE, ("ModelWithProjection",)),
    ("SiglipModel", {"model_type": "siglip", "text_config": BERT, "vision_config": IMAGE}),
    ("SiglipTextModel", {"model_type": "siglip_text_model", **BERT}),
    ("SiglipVisionModel", {"model_type": "siglip_vision_model", **IMAGE}),
    ("SiglipVisionModel", {"model_type": "siglip_vision_model", **IMAGE, "vision_use_head": False}),
    (
        "Siglip2VisionModel",
        {"model_type": "siglip2_vision_model", **{k: v for k, v in IMAGE.items() if k != "image_size"}},
    ),
    *(
        case
        for family, model_type in (("Wav2Vec2", "wav2vec2"), ("Hubert", "hubert"), ("WavLM", "wavlm"))
        for case in classes(family, model_type, SPEECH, ("ForCTC", "ForSequenceClassification"))
    ),
    ("Wav2Vec2ForPreTraining", {"model_type": "wav2vec2", **SPEECH}),
    ("Wav2Vec2ForCTC", {"model_type": "wav2vec2", **SPEECH, "add_adapter": True, "output_hidden_size": 32}),
    (
        "Wav2Vec2Model",
        {
            "model_type": "wav2vec2",
            **SPEECH,
            "adapter_attn_dim": 16,
            "do_stable_layer_norm": True,
            "feat_extract_norm": "layer",
            "conv_bias": True,
            "mask_time_prob": 0.0,
        },
    ),
    ("HubertModel", {"model_type": "hubert", **SPEECH, "feat_proj_layer_norm": False}),
    ("WavLMForAudioFrameClassification", {"model_type": "wavlm", **SPEECH, "use_weighted_layer_sum": True}),
]

ENCODER_DECODERS: list[Case] = [
    *(
        case
        for family, model_type in (
            ("Bart", "bart"),
            ("MBart", "mbart"),
            ("Pegasus", "pegasus"),
            ("M2M100", "m2m_100"),
        )
        for case in classes(family, model_type, BART, ("ForConditionalGeneration",))
    ),
    ("BartForSequenceClassification", {"model_type": "bart", **BART}),
    ("BartForConditionalGeneration", {"model_type": "bart", **BART, "tie_word_embeddings": False}),
    *classes("Marian", "marian", BART, ("MTModel",)),
    (
        "MarianMTModel",
        {
            "model_type": "marian",
            **BART,
            "share_encoder_decoder_embeddings": False,
            "decoder_vocab_size": 90,
            "tie_word_embeddings": False,
        },
    ),
    *(
        case
        for family, model_type in (("T5", "t5"), ("MT5", "mt5"), ("UMT5", "umt5"))
        for case in classes(
            family,
            model_type,
            T5,
            ("ForConditionalGeneration", "EncoderModel", "ForSequenceClassification", "ForTokenClassification"),
        )
    ),
    ("T5ForConditionalGeneration", {"model_type": "t5", **T5, "feed_forward_proj": "gated-gelu"}),
    *classes("Whisper", "whisper", WHISPER, ("ForConditionalGeneration",)),
]

ENCODERS = [*TEXT_ENCODERS, *MEDIA_ENCODERS, *ENCODER_DECODERS]
