"""The public surface: what `structprune` offers, and that every name in it is documented."""

from __future__ import annotations

import inspect

import pytest

import structprune as sp

NAMES = [
    # the way from a model to a smaller one, step by step and in one call
    "trace", "score", "select", "apply_plan", "verify", "prune", "rewrite", "sweep",
    # what the steps pass on
    "Budget", "ChannelGroup", "DependencyGraph", "Frozen", "KINDS", "Layer", "Limit", "PruningPlan", "QUANTITIES",
    "Change", "KindCut", "QuantityCut", "SweepPoint", "PruneReport", "PruneResult", "VerifyReport",
    # after the cut
    "RefitReport", "refit",
    # before it
    "LossForecast", "Sensitivity", "sensitivity",
    # measuring
    "LatencyForecast", "LatencyReport", "Measurement", "Ratio", "Runtime", "Staircase", "forecast_latency",
    "flush_subnormals", "count_macs", "count_params", "measure_latency", "peak_activation_bytes", "ratio",
    "staircase", "weight_bytes",
    # files
    "ExportReport", "FilesReport", "apply_plan_to_files", "export_onnx", "load", "load_plans", "save",
    # pipelines as data
    "Recipe", "RecipeResult", "run_recipe",
    # building without memory
    "empty_weights",
    # training: a package with names of its own
    "train",
    # unstructured
    "finalize", "nonzeros", "sparsify",
    # inputs as the command line writes them
    "parse_inputs",
    # extending
    "Call", "rule",
    # errors
    "BudgetError", "ExportError", "InputError", "PlanError", "StorageError", "StructpruneError", "TraceError",
    "VerificationError",
]  # fmt: skip


def test_the_public_names_are_these_and_no_others() -> None:
    assert sorted(sp.__all__) == sorted(NAMES)


def test_all_is_sorted_so_that_a_change_is_easy_to_read() -> None:
    assert list(sp.__all__) == sorted(sp.__all__, key=lambda name: (not name.isupper(), name))


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_has_a_docstring_of_its_own(name: str) -> None:
    found = getattr(sp, name)
    assert (found.__doc__ or "").strip(), f"{name} has no docstring"
    assert not (found.__doc__ or "").startswith(f"{name}("), (
        f"{name} has only the docstring that dataclass makes"
    )


@pytest.mark.parametrize("name", [name for name in NAMES if inspect.isfunction(getattr(sp, name, None))])
def test_every_public_function_is_typed(name: str) -> None:
    function = getattr(sp, name)
    untyped = [p.name for p in inspect.signature(function).parameters.values() if p.annotation is p.empty]
    assert not untyped, f"{name}: no type for {untyped}"
    assert "return" in function.__annotations__, f"{name}: no type for what it returns"


def test_every_error_is_one_of_ours() -> None:
    errors = [getattr(sp, name) for name in NAMES if name.endswith("Error")]
    assert all(issubclass(error, sp.StructpruneError) for error in errors)
    assert issubclass(sp.InputError, ValueError)


def test_the_version_is_the_package_version() -> None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        installed = version("structprune")
    except PackageNotFoundError:
        pytest.skip("structprune runs from its source tree")
    assert sp.__version__ == installed
