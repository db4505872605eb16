"""Rules of the user's own, and the list of those that are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import structprune as sp
from structprune.cli import app
from structprune.rules import known_rules
from tests.oracle import judge


@torch.library.custom_op("structprune_tests::scaled_sum", mutates_args=())
def scaled_sum(x: Tensor, weight: Tensor) -> Tensor:
    """[b, i], [o, i] -> [b, o], doubled: a product as a kernel of one's own would compute it."""
    return 2 * (x @ weight.t())


@scaled_sum.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@torch.library.custom_op("structprune_tests::halve", mutates_args={"x"})
def halve(x: Tensor) -> None:
    """[n], written in place; nothing is returned."""
    x.mul_(0.5)


@halve.register_fake
def _(x: Tensor) -> None:
    return None


class Own(nn.Module):
    """Two layers around a product of the user's own, and a value halved in place."""

    def __init__(self, in_place: bool = False) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 12), nn.Linear(8, 3)
        self.weight = nn.Parameter(torch.randn(8, 12))
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        if self.in_place:
            torch.ops.structprune_tests.halve(x)
        x = torch.ops.structprune_tests.scaled_sum(x, self.weight)
        return self.head(x)  # type: ignore[no-any-return]


def flow(c: sp.Call) -> None:
    """[b, i], [o, i] -> [b, o]."""
    x, weight = c.dims(c["x"]), c.dims(c["weight"])
    c.unify(x[1], weight[1])
    c.role(weight[1], "in")
    c.role(weight[0], "out")
    c.macs(x[0], weight[0], weight[1])
    c.set(c.out, (x[0], weight[0]))
    c.contract([x[1]], {"x": 1, "weight": 1})


def reasons(model: nn.Module) -> dict[str, str]:
    return {group.name: str(group.frozen or "free") for group in sp.trace(model, torch.randn(2, 4)).groups}


def test_without_a_rule_all_it_touches_stays_and_the_reason_says_what_to_do() -> None:
    found = reasons(Own())
    line = Own.forward.__code__.co_firstlineno + 4
    assert found["stem"] == (
        "no rule for the operation structprune_tests::scaled_sum; structprune.rule registers one "
        f"(test_rules.py:{line})"
    )
    assert found["weight[0]"] == found["stem"]


def test_with_a_rule_it_is_cut_and_proven(table: dict[str, Any]) -> None:
    sp.rule("structprune_tests::scaled_sum")(flow)
    result = sp.prune(Own(), torch.randn(2, 4), sp.Budget(channels=0.5))
    assert (tuple(result.model.stem.weight.shape), tuple(result.model.weight.shape)) == ((6, 4), (4, 6))
    assert result.report.verify is not None
    assert result.report.verify.max_error <= 1e-9
    assert sp.count_macs(Own(), torch.randn(1, 4)) == 4 * 12 + 12 * 8 + 8 * 3


def test_what_writes_and_returns_nothing_is_judged_as_well(table: dict[str, Any]) -> None:
    sp.rule("structprune_tests::scaled_sum")(flow)
    assert "no rule for the operation structprune_tests::halve" in reasons(Own(in_place=True))["stem"]

    @sp.rule("structprune_tests::halve")
    def in_place(c: sp.Call) -> None:
        """[n] -> [n]."""

    assert reasons(Own(in_place=True))["stem"] == "free"


def test_a_rule_that_forgets_a_result_is_an_error(table: dict[str, Any]) -> None:
    sp.rule("structprune_tests::scaled_sum")(lambda c: None)
    with pytest.raises(
        sp.TraceError, match=r"scaled_sum, at test_rules\.py:\d+, .*result 0, of shape \[2, 8\]"
    ):
        sp.trace(Own(), torch.randn(2, 4))


@pytest.mark.parametrize("error", [KeyError("weigth"), RuntimeError("no"), NotImplementedError("yet")])
def test_a_rule_that_raises_is_named_with_its_line(table: dict[str, Any], error: Exception) -> None:
    @sp.rule("structprune_tests::scaled_sum")
    def wrong(c: sp.Call) -> None:
        raise error

    with pytest.raises(
        sp.TraceError, match=r"the rule of structprune_tests::scaled_sum, at test_rules.py:\d+"
    ) as e:
        sp.trace(Own(), torch.randn(2, 4))
    assert e.value.__cause__ is error


def test_an_operation_has_one_rule(table: dict[str, Any]) -> None:
    sp.rule("structprune_tests::scaled_sum")(flow)
    with pytest.raises(
        sp.InputError, match=rf"has a rule already, at test_rules.py:{flow.__code__.co_firstlineno}"
    ):
        sp.rule("structprune_tests::scaled_sum")
    with pytest.raises(sp.InputError, match=r"'relu'|'mm' has a rule already, at contractions.py"):
        sp.rule("mm")


@pytest.mark.parametrize("name", ["structprune_tests::no_such", "no_such_library::op", "rellu"])
def test_a_rule_for_what_torch_does_not_know_is_refused(name: str) -> None:
    with pytest.raises(sp.InputError, match="torch knows no operation '(aten::)?" + name):
        sp.rule(name)


def test_a_rule_needs_a_name() -> None:
    with pytest.raises(sp.InputError, match="needs the name of an operation"):
        sp.rule()
    with pytest.raises(sp.InputError, match="name the operation"):
        sp.rule(flow)  # type: ignore[arg-type]


def test_the_example_of_the_readme_runs(table: dict[str, Any]) -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text()
    (example,) = [block for block in text.split("```")[1::2] if "@sp.rule" in block]
    exec(compile(example.removeprefix("python"), "README.md", "exec"), {})


# -- functions that torch lets pass in the open ---------------------------------------------------------------------


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


def test_an_autograd_function_needs_no_rule_where_it_is_made_of_operations() -> None:
    class Custom(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(4, 12), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(Swish.apply(self.stem(x)))  # type: ignore[no-any-return,no-untyped-call]

    verdict = judge(Custom(), torch.randn(2, 4), lambda m, x: sp.prune(m, x, sp.Budget(channels=0.5)).model)
    assert verdict.status == "exact", verdict.detail


# -- the list ----------------------------------------------------------------------------------------------------------


def test_every_rule_has_a_sentence() -> None:
    known = list(known_rules())
    assert [one.operation for one in known if not one.sentence.endswith((".", "]", "number"))] == []
    kinds = {one.operation: one.known_by for one in known}
    assert (kinds["convolution"], kinds["erf"]) == ("name", "tag")
    assert "_foreach_add" in kinds
    assert "_foreach_norm" not in kinds


def test_rules_lists_filters_and_writes_json() -> None:
    runner = CliRunner()
    shown = runner.invoke(app, ["rules", "*convolution*"])
    assert shown.exit_code == 0
    assert "[b, c, h, w]" not in shown.stdout
    assert "cudnn_convolution" in shown.stdout
    found = json.loads(runner.invoke(app, ["rules", "scaled_dot*", "--json"]).stdout)
    assert [(one["operation"], one["known_by"]) for one in found["rules"]] == [
        ("scaled_dot_product_attention", "function")
    ]


def test_rules_of_a_file_are_listed_too(
    table: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = 'import structprune as sp\n@sp.rule("structprune_tests::scaled_sum")\ndef flow(c):\n    """Of a file."""\n'
    (tmp_path / "own.py").write_text(source)
    shown = CliRunner().invoke(app, ["rules", "structprune_tests::*", "--load", "own.py", "--json"])
    (one,) = json.loads(shown.stdout)["rules"]
    assert (one["sentence"], one["family"]) == ("Of a file.", "own")


def test_no_rule_of_such_a_name_is_a_usage_error() -> None:
    shown = CliRunner().invoke(app, ["rules", "no_such_operation"])
    assert shown.exit_code == 2
    assert "no rule for an operation named 'no_such_operation'" in shown.stderr
