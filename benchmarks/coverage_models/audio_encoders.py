"""Encoders of raw audio and spectrograms in tiny configurations."""

from __future__ import annotations

from benchmarks.coverage_case import Case, case, numbers
from benchmarks.coverage_models.audio_options import wave_case

__all__ = ["CASES"]

CASES: tuple[Case, ...] = (
    wave_case("wav2vec2", "Wav2Vec2ForCTC"),
    wave_case("wav2vec2 layer norm", "Wav2Vec2ForCTC", feat_extract_norm="layer", do_stable_layer_norm=True),
    wave_case("wav2vec2 classifier", "Wav2Vec2ForSequenceClassification", classifier_proj_size=16),
    wave_case(
        "wav2vec2 speaker",
        "Wav2Vec2ForXVector",
        tdnn_dim=[16, 16, 24],
        tdnn_kernel=[3, 3, 1],
        tdnn_dilation=[1, 2, 1],
        xvector_output_dim=16,
    ),
    wave_case(
        "wav2vec2_conformer",
        "Wav2Vec2ConformerForCTC",
        conv_depthwise_kernel_size=3,
        position_embeddings_type="relative",
    ),
    wave_case(
        "wav2vec2_conformer rotary",
        "Wav2Vec2ConformerForCTC",
        conv_depthwise_kernel_size=3,
        position_embeddings_type="rotary",
    ),
    wave_case("hubert", "HubertForCTC"),
    wave_case("wavlm", "WavLMForCTC", num_buckets=16, max_bucket_distance=32),
    wave_case("unispeech", "UniSpeechForCTC"),
    wave_case("unispeech_sat", "UniSpeechSatForCTC"),
    wave_case("data2vec_audio", "Data2VecAudioForCTC", num_conv_pos_embeddings=2, conv_pos_kernel_size=3),
    wave_case("sew", "SEWForCTC", squeeze_factor=2),
    wave_case("sew_d", "SEWDForCTC", squeeze_factor=2, position_buckets=8, max_position_embeddings=64),
    case(
        "wav2vec2_bert",
        "audio encoder",
        "Wav2Vec2BertForCTC",
        lambda: {"input_features": numbers(2, 20, 16)},
        vocab_size=24,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        feature_projection_input_dim=16,
        conv_depthwise_kernel_size=3,
        output_hidden_size=32,
    ),
    case(
        "audio_spectrogram_transformer",
        "audio encoder",
        "ASTForAudioClassification",
        lambda: {"input_values": numbers(2, 24, 16)},
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        patch_size=4,
        max_length=24,
        num_mel_bins=16,
        frequency_stride=2,
        time_stride=2,
        num_labels=5,
    ),
)
