"""Time series and decisions in tiny configurations."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.coverage_case import Case, case, numbers, uniform

__all__ = ["CASES"]

FORECAST: dict[str, Any] = {
    "prediction_length": 4,
    "context_length": 12,
    "lags_sequence": [1, 2, 3],
    "num_time_features": 2,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "use_cache": False,
}

PATCHES: dict[str, Any] = {
    "num_input_channels": 3,
    "context_length": 32,
    "patch_length": 8,
    "patch_stride": 8,
    "d_model": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 48,
    "prediction_length": 4,
    "num_targets": 5,
}


def forecast() -> dict[str, Any]:
    return {
        "past_values": uniform(2, 15),
        "past_time_features": numbers(2, 15, 2),
        "past_observed_mask": torch.ones(2, 15),
        "future_values": uniform(2, 4),
        "future_time_features": numbers(2, 4, 2),
    }


def past() -> dict[str, Any]:
    return {"past_values": numbers(2, 32, 3)}


def decisions() -> dict[str, Any]:
    return {
        "states": numbers(2, 6, 5),
        "actions": numbers(2, 6, 3),
        "rewards": numbers(2, 6, 1),
        "returns_to_go": numbers(2, 6, 1),
        "timesteps": torch.arange(12).reshape(2, 6),
        "attention_mask": torch.ones(2, 6, dtype=torch.long),
    }


CASES: tuple[Case, ...] = (
    case(
        "time_series_transformer", "time series", "TimeSeriesTransformerForPrediction", forecast, **FORECAST
    ),
    case("informer", "time series", "InformerForPrediction", forecast, **FORECAST),
    case(
        "autoformer",
        "time series",
        "AutoformerForPrediction",
        forecast,
        **FORECAST,
        moving_average=3,
        label_length=6,
    ),
    case("patchtst", "time series", "PatchTSTForPrediction", past, **PATCHES),
    case("patchtst classifier", "time series", "PatchTSTForClassification", past, **PATCHES),
    case("patchtsmixer", "time series", "PatchTSMixerForPrediction", past, **PATCHES, num_layers=2),
    case(
        "patchtsmixer mixing",
        "time series",
        "PatchTSMixerForPrediction",
        past,
        **PATCHES,
        num_layers=2,
        mode="mix_channel",
    ),
    case(
        "timesfm",
        "time series",
        "TimesFmModelForPrediction",
        lambda: {"past_values": [numbers(32), numbers(32)]},
        patch_length=8,
        context_length=32,
        horizon_length=16,
        hidden_size=32,
        intermediate_size=48,
        head_dim=8,
        num_hidden_layers=2,
        num_attention_heads=4,
        freq_size=3,
        quantiles=[0.1, 0.5, 0.9],
    ),
    case(
        "decision_transformer",
        "decisions",
        "DecisionTransformerModel",
        decisions,
        state_dim=5,
        act_dim=3,
        hidden_size=32,
        max_ep_len=64,
        n_layer=2,
        n_head=4,
        n_inner=48,
        use_cache=False,
    ),
)
