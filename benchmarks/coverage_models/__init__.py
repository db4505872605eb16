"""The architectures of the coverage benchmark: small configurations of the package transformers, by kind."""

from __future__ import annotations

from benchmarks.coverage_case import Case
from benchmarks.coverage_models import (
    audio_encoders,
    audio_speech,
    audio_synthesis,
    documents,
    multimodal_contrastive,
    multimodal_fused,
    multimodal_language,
    series,
    text_decoders,
    text_encoders,
    text_experts,
    text_pairs,
    vision_dense,
    vision_detection,
    vision_masks,
    vision_mixed,
    vision_transformers,
)

__all__ = ["CASES"]

CASES: tuple[Case, ...] = (
    *text_encoders.CASES,
    *text_decoders.CASES,
    *text_pairs.CASES,
    *text_experts.CASES,
    *vision_transformers.CASES,
    *vision_mixed.CASES,
    *vision_dense.CASES,
    *vision_masks.CASES,
    *vision_detection.CASES,
    *audio_encoders.CASES,
    *audio_speech.CASES,
    *audio_synthesis.CASES,
    *multimodal_contrastive.CASES,
    *multimodal_fused.CASES,
    *multimodal_language.CASES,
    *documents.CASES,
    *series.CASES,
)
