"""ONNX export: what is written computes what the module computes, and nothing is left where it does not."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from structprune import export
from structprune.errors import ExportError, InputError
from structprune.export import ExportReport, export_onnx
from structprune.plan import Budget, GroupPlan, PruningPlan
from structprune.runtimes import onnx_convert

IMAGE = torch.randn(1, 3, 8, 8)


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.drop(torch.relu(self.norm(self.conv(image))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


@dataclasses.dataclass
class Answer:
    logits: Tensor
    hidden: tuple[Tensor, Tensor]
    note: str = "no tensor"


class Reader(nn.Module):
    """Token ids and a mask by keyword, a dataclass out, one output that is an input."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, ids: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Answer:
        x = self.table(ids) * scale
        if mask is not None:
            x = x * mask.unsqueeze(-1)
        return Answer(self.head(x.mean(1)), (x, ids))


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.shape[0] == 2 else x


def session(path: Path) -> Any:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def leftovers(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_dynamic_batch_computes_the_same_on_every_batch(tmp_path: Path) -> None:
    model = ConvNet().train()
    model.norm.eval()
    before = [module.training for module in model.modules()]
    report = export_onnx(model, IMAGE, tmp_path / "net.onnx")
    assert isinstance(report, ExportReport)
    assert report.dynamic_batch
    assert set(report.errors) == {1, 2, 3}
    assert max(report.errors.values()) < 1e-4
    assert report.bytes == (tmp_path / "net.onnx").stat().st_size
    assert (report.input_names, report.output_names) == (("image",), ("output",))
    assert [module.training for module in model.modules()] == before
    assert leftovers(tmp_path) == ["net.onnx"]
    model.eval()
    for batch in (1, 2, 3, 7):
        x = torch.randn(batch, 3, 8, 8)
        (got,) = session(report.path).run(None, {"image": x.numpy()})
        np.testing.assert_allclose(got, model(x).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_the_file_names_weights_as_the_module_does_and_no_path_of_this_machine(tmp_path: Path) -> None:
    report = export_onnx(ConvNet(), IMAGE, tmp_path / "net.onnx")
    proto = onnx.load(report.path)
    names = {value.name for value in proto.graph.initializer}
    assert {"conv.weight", "head.weight", "head.bias"} <= names
    assert str(Path(__file__).parent).encode() not in report.path.read_bytes()
    assert b"site-packages" not in report.path.read_bytes()
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_the_export_is_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONWARNINGS", "always")
        export_onnx(ConvNet(), IMAGE, tmp_path / "net.onnx")
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_keyword_inputs_and_dataclass_outputs_keep_their_names(tmp_path: Path) -> None:
    model = Reader().eval()
    ids = torch.tensor([[4, 7, 49], [4, 5, 6]])
    inputs = {"mask": torch.ones(2, 3), "ids": ids, "scale": 2.0}
    report = export_onnx(model, inputs, tmp_path / "reader.onnx")
    assert report.input_names == ("mask", "ids")
    assert report.output_names == ("logits", "hidden_0", "hidden_1")
    fresh = {"mask": torch.rand(5, 3), "ids": torch.randint(0, 50, (5, 3))}
    got = session(report.path).run(None, {name: t.numpy() for name, t in fresh.items()})
    want = model(**fresh, scale=2.0)
    np.testing.assert_allclose(got[0], want.logits.detach().numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(got[2], fresh["ids"].numpy())


@pytest.mark.parametrize(
    ("returns", "names"),
    [
        (lambda x: {"image": x, "b": [x, x + 1]}, ("image_2", "b_0", "b_1")),
        (lambda x: (x * 2, None, 3), ("output_0",)),
        (lambda x: x.argmax(1), ("output",)),
    ],
    ids=["dict", "tuple-with-none", "integers"],
)
def test_outputs_of_every_kind(tmp_path: Path, returns: Any, names: tuple[str, ...]) -> None:
    class Returns(nn.Module):
        def forward(self, image: Tensor) -> Any:
            return returns(image)

    assert export_onnx(Returns(), IMAGE, tmp_path / "r.onnx").output_names == names


def test_masks_are_stored_computed_and_stay_on_the_module(tmp_path: Path) -> None:
    class Mask(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight * (torch.arange(weight.numel()).view_as(weight) % 2)

    model = nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 3, batch_first=True))
    for layer, name in ((model[0], "weight"), (model[1], "weight_ih_l0")):
        parametrize.register_parametrization(layer, name, Mask())
    original = model[0].get_submodule("parametrizations.weight").get_parameter("original").clone()
    report = export_onnx(model, torch.randn(2, 5, 4), tmp_path / "m.onnx")
    weights = {v.name: onnx.numpy_helper.to_array(v) for v in onnx.load(report.path).graph.initializer}
    assert not any("parametrizations" in name for name in weights)
    assert any(int((w == 0).sum()) == 8 for w in weights.values() if w.size == 16)
    assert parametrize.is_parametrized(model[0], "weight")
    after = model[0].get_submodule("parametrizations.weight").get_parameter("original")
    assert torch.equal(after, original)


def test_attention_in_eval_mode_converts_and_the_fast_path_is_back(tmp_path: Path) -> None:
    before = torch.backends.mha.get_fastpath_enabled()
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    report = export_onnx(layer, torch.randn(2, 5, 8), tmp_path / "t.onnx")
    assert report.dynamic_batch
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_metadata_names_the_plan_and_the_callers_words(tmp_path: Path) -> None:
    plan = PruningPlan(
        fingerprint="ab" * 32,
        groups=(GroupPlan("conv", 16, tuple(range(8))),),
        tensors={"conv.weight": {0: tuple(range(8))}},
        shapes={"conv.weight": (16, 3, 3, 3)},
        attributes=(),
        budget=Budget(macs=0.5),
        criterion="l2",
        scope="global",
    )
    report = export_onnx(ConvNet(), IMAGE, tmp_path / "n.onnx", plan=plan, metadata={"owner": "tests"})
    found = {entry.key: entry.value for entry in onnx.load(report.path).metadata_props}
    assert found["structprune.fingerprint"] == "ab" * 32
    assert found["structprune.budget"] == "macs=0.5"
    assert found["structprune.criterion"] == "l2"
    assert found["structprune.scope"] == "global"
    assert len(found["structprune.plan_sha256"]) == 64
    assert found["structprune.version"]
    assert found["owner"] == "tests"
    assert session(report.path).get_modelmeta().custom_metadata_map["owner"] == "tests"


def test_another_models_plan_is_refused(tmp_path: Path) -> None:
    plan = PruningPlan("cd" * 32, (), {"conv.weight": {0: (0, 1)}}, {"conv.weight": (16, 3, 3, 3)}, ())
    with pytest.raises(ExportError, match=r"conv\.weight"):
        export_onnx(ConvNet(), IMAGE, tmp_path / "n.onnx", plan=plan)
    assert leftovers(tmp_path) == []


@pytest.fixture
def corrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversions that change one weight on the way."""
    real = onnx_convert.convert

    def wrong(*args: Any, **kwargs: Any) -> Any:
        converted = real(*args, **kwargs)
        value = converted.model.graph.initializers["head.weight"]
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy() + 0.1, name="head.weight")
        return converted

    monkeypatch.setattr(export, "convert", wrong)


@pytest.mark.usefixtures("corrupt")
@pytest.mark.parametrize("dynamic", [True, False, "auto"])
def test_a_mismatch_leaves_no_file(tmp_path: Path, dynamic: Any) -> None:
    with pytest.raises(ExportError, match=r"output 'output' on a batch of [12]: differs"):
        export_onnx(ConvNet(), IMAGE, tmp_path / "net.onnx", dynamic_batch=dynamic)
    assert leftovers(tmp_path) == []


@pytest.mark.usefixtures("corrupt")
def test_a_mismatch_leaves_an_older_file_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "net.onnx"
    target.write_bytes(b"an older export")
    with pytest.raises(ExportError):
        export_onnx(ConvNet(), IMAGE, target)
    assert target.read_bytes() == b"an older export"
    assert leftovers(tmp_path) == ["net.onnx"]


@pytest.mark.parametrize("where", ["convert", "open_session", "largest_difference", "random_like"])
def test_an_interrupt_leaves_everything_as_it_was(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    target = tmp_path / "net.onnx"
    target.write_bytes(b"an older export")
    monkeypatch.setattr(export, where, interrupt)
    model = ConvNet().train()
    with pytest.raises(KeyboardInterrupt):
        export_onnx(model, IMAGE, target)
    assert target.read_bytes() == b"an older export"
    assert leftovers(tmp_path) == ["net.onnx"]
    assert model.training


def test_an_older_file_is_replaced_by_a_good_one(tmp_path: Path) -> None:
    target = tmp_path / "net.onnx"
    target.write_bytes(b"an older export")
    export_onnx(ConvNet(), IMAGE, target)
    onnx.checker.check_model(str(target))


def test_a_batch_that_cannot_vary_is_fixed_and_said_so(tmp_path: Path) -> None:
    report = export_onnx(FixedBatch(), torch.randn(2, 3), tmp_path / "f.onnx")
    assert not report.dynamic_batch
    assert "fixed at 2" in report.note
    assert "fixed at 2" in str(report)
    assert list(report.errors) == [2]
    assert onnx.load(report.path).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2


def test_a_batch_that_cannot_vary_is_an_error_where_it_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="dynamic_batch"):
        export_onnx(FixedBatch(), torch.randn(2, 3), tmp_path / "f.onnx", dynamic_batch=True)
    assert leftovers(tmp_path) == []


def test_dynamic_batch_false_fixes_the_examples_sizes(tmp_path: Path) -> None:
    report = export_onnx(ConvNet(), IMAGE, tmp_path / "net.onnx", dynamic_batch=False)
    assert (report.dynamic_batch, report.note, list(report.errors)) == (False, "", [1])


def test_batches_that_the_module_refuses_are_listed(tmp_path: Path) -> None:
    class Even(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(x.shape[0] // 2, 2, -1).sum(1)

    report = export_onnx(Even(), torch.randn(2, 3), tmp_path / "e.onnx", check_batches=(1, 2, 4))
    assert set(report.errors) == {2, 4}
    assert set(report.skipped) == {1}


def test_a_model_that_treats_one_row_apart_is_not_exported_as_dynamic(tmp_path: Path) -> None:
    class OneRow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.shape[0] == 1 else x

    report = export_onnx(OneRow(), torch.randn(1, 3), tmp_path / "o.onnx")
    assert not report.dynamic_batch


def test_opset_choice(tmp_path: Path) -> None:
    report = export_onnx(ConvNet(), IMAGE, tmp_path / "net.onnx", opset=18)
    assert report.opset == 18
    assert onnx.load(report.path).opset_import[0].version == 18
    with pytest.raises(ExportError, match="opset=99"):
        export_onnx(ConvNet(), IMAGE, tmp_path / "other.onnx", opset=99)
    assert leftovers(tmp_path) == ["net.onnx"]


def test_weights_beyond_protobuf_lie_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_convert, "INLINE_LIMIT", 0)
    model = ConvNet().eval()
    target = tmp_path / "net.onnx"
    first = export_onnx(model, IMAGE, target)
    second = export_onnx(model, IMAGE, target)
    assert second.data_path is not None
    assert first.data_path != second.data_path
    assert leftovers(tmp_path) == sorted(["net.onnx", second.data_path.name])
    assert second.bytes == target.stat().st_size + second.data_path.stat().st_size
    (got,) = session(target).run(None, {"image": IMAGE.numpy()})
    np.testing.assert_allclose(got, model(IMAGE).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_errors_of_the_models_own_forward_are_named(tmp_path: Path) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("a reason of its own")

    with pytest.raises(ExportError, match="a reason of its own"):
        export_onnx(Broken(), IMAGE, tmp_path / "b.onnx")
    with pytest.raises(ExportError, match="does not take these inputs"):
        export_onnx(ConvNet(), (IMAGE, IMAGE), tmp_path / "b.onnx")
    assert leftovers(tmp_path) == []


def test_random_numbers_in_eval_mode_are_refused(tmp_path: Path) -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    with pytest.raises(ExportError, match="random"):
        export_onnx(Noisy(), IMAGE, tmp_path / "n.onnx")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    "change", [{"check_batches": ()}, {"check_batches": (0,)}, {"dynamic_batch": "yes"}], ids=str
)
def test_arguments_out_of_range(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        export_onnx(ConvNet(), IMAGE, tmp_path / "n.onnx", **change)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder"):
        export_onnx(ConvNet(), IMAGE, tmp_path)
