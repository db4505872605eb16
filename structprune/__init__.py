"""structprune: smaller PyTorch networks, proven to compute what was promised."""

from structprune import train
from structprune.budget import QUANTITIES, Budget, Limit
from structprune.changes import Change
from structprune.empty_weights import empty_weights
from structprune.engines import trace
from structprune.errors import (
    BudgetError,
    ExportError,
    InputError,
    PlanError,
    StorageError,
    StructpruneError,
    TraceError,
    VerificationError,
)
from structprune.export import ExportReport, export_onnx
from structprune.forecast import LatencyForecast, forecast_latency
from structprune.graph import ChannelGroup, DependencyGraph, Frozen, Layer
from structprune.importance import score
from structprune.inputs import parse_inputs
from structprune.kinds import KINDS
from structprune.latency import Measurement, Ratio, measure_latency, ratio
from structprune.latency_target import LatencyReport
from structprune.masking import finalize, nonzeros, sparsify
from structprune.measure import count_macs, count_params, peak_activation_bytes, weight_bytes
from structprune.pipeline import LossForecast, PruneReport, PruneResult, prune
from structprune.plan import PruningPlan
from structprune.recipes import Recipe, RecipeResult, run_recipe
from structprune.refit import RefitReport, refit
from structprune.rewriting import rewrite
from structprune.rules import Call
from structprune.rules.custom import rule
from structprune.runtime_settings import Runtime
from structprune.select import select
from structprune.sensitivity import Sensitivity, sensitivity
from structprune.staircase import Staircase, staircase
from structprune.storage import load, load_plans, save
from structprune.streaming import FilesReport, apply_plan_to_files
from structprune.subnormals import flush_subnormals
from structprune.summary import KindCut, QuantityCut
from structprune.surgery import apply_plan
from structprune.sweep import SweepPoint, sweep
from structprune.verify import VerifyReport, verify

__version__ = "0.1.0"

__all__ = [
    "KINDS",
    "QUANTITIES",
    "Budget",
    "BudgetError",
    "Call",
    "Change",
    "ChannelGroup",
    "DependencyGraph",
    "ExportError",
    "ExportReport",
    "FilesReport",
    "Frozen",
    "InputError",
    "KindCut",
    "LatencyForecast",
    "LatencyReport",
    "Layer",
    "Limit",
    "LossForecast",
    "Measurement",
    "PlanError",
    "PruneReport",
    "PruneResult",
    "PruningPlan",
    "QuantityCut",
    "Ratio",
    "Recipe",
    "RecipeResult",
    "RefitReport",
    "Runtime",
    "Sensitivity",
    "Staircase",
    "StorageError",
    "StructpruneError",
    "SweepPoint",
    "TraceError",
    "VerificationError",
    "VerifyReport",
    "apply_plan",
    "apply_plan_to_files",
    "count_macs",
    "count_params",
    "empty_weights",
    "export_onnx",
    "finalize",
    "flush_subnormals",
    "forecast_latency",
    "load",
    "load_plans",
    "measure_latency",
    "nonzeros",
    "parse_inputs",
    "peak_activation_bytes",
    "prune",
    "ratio",
    "refit",
    "rewrite",
    "rule",
    "run_recipe",
    "save",
    "score",
    "select",
    "sensitivity",
    "sparsify",
    "staircase",
    "sweep",
    "trace",
    "train",
    "verify",
    "weight_bytes",
]
