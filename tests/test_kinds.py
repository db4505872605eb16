"""Kinds: what each group's channels are for, told from the structure of the trace; asked for and kept by kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn
from torch.nn import functional as F

import structprune as sp
from structprune.kinds import FAMILIES
from tests.nets import architectures_dense, architectures_residual, architectures_tokens, attention, patterns
from tests.nets.case import Net, conv, image, row, tokens
from tests.oracle import judge

CASES = {
    case.id: case
    for nets in (architectures_residual, architectures_dense, architectures_tokens)
    for case in (*nets.CASES, *patterns.PATTERNS)
}


def kinds_of(graph: sp.DependencyGraph) -> dict[str, str]:
    return {group.name: group.kind for group in graph.groups}


def cut(result: sp.PruneResult) -> dict[str, tuple[int, int]]:
    return {g.name: (g.count, g.size) for g in result.plan.groups if g.count < g.size}


# -- what groups are ---------------------------------------------------------------------------------------------

EXPECTED: dict[str, dict[str, str]] = {
    "fused qkv, indexed": {
        "0[0]": "residual",
        "1.attention.qkv[1]": "heads",
        "1.attention.qkv[2]": "head_dim",  # one axis for q, k and v
        "1.mlp.0": "mlp",
        "3": "output",
        "0.in": "input",
    },
    "fused qkv, chunk": {
        "0": "residual",
        "1.attention.qkv[0]": "heads",
        "1.attention.qkv[1]": "qk width",
        "1.attention.qkv[2]": "v width",
    },
    "fused qkv, unbind, sdpa": {"1.attention.qkv[1]": "heads", "1.attention.qkv[2]": "head_dim"},
    "head size stored": {
        "0": "residual",
        "1.attention.q[0]": "heads",
        "1.attention.q[1]": "qk width",
        "1.attention.v": "v width",
    },
    "rotary": {"1.attention.q[0]": "heads", "1.attention.q[1]": "qk width", "1.attention.v[0]": "v width"},
    "gqa by repeat_interleave": {
        "1.attention.q[0]": "kv groups",
        "1.attention.q[1]": "queries per group",
        "1.attention.q[2]": "qk width",
    },
    "gqa by expand": {"1.attention.q[0]": "kv groups", "1.attention.q[1]": "queries per group"},
    "gqa in the kernel": {"1.attention.q[0]": "kv groups"},
    "mqa by expand": {"1.attention.q[0]": "heads"},
    "mqa by broadcast": {"1.attention.q[0]": "heads"},
    "multi-head attention module": {
        "1.attention.mha.in_proj_weight[1]": "heads",
        "1.attention.mha.in_proj_weight[2]": "head_dim",
    },
    "encoder layer": {"1.self_attn.in_proj_weight[1]": "heads", "1.linear1": "mlp", "0[0]": "residual"},
    "einsum attention": {"q[0]": "heads", "q[1]": "qk width", "v": "v width"},
    "window attention": {"window.qkv[0]": "heads", "window.qkv[2]": "head_dim", "window.table": "positions"},
    "linear attention": {
        "1.attention.qkv[0]": "heads",
        "1.attention.qkv[1]": "qk width",
        "1.attention.qkv[2]": "v width",
    },
    "channel gram attention": {"stem": "head_dim"},
    "swiglu": {"gate": "mlp"},
    "swiglu, fused": {"both": "mlp"},
    "convnext block": {"0": "residual", "1.up": "mlp"},
    "resnet basic": {"0.0.0": "residual", "0.1.conv1": "conv", "0.2.conv2": "residual"},
    "mobilenet v2": {"0.2.conv.0": "conv", "0.2.conv.6": "residual"},
    "squeeze and excite by linears": {"0": "conv", "2.fc1": "mlp"},
    "diffusion unet": {"t1": "mlp", "b1.c1[0]": "conv", "b1.c2": "residual"},
    "densenet": {"features.0": "conv", "features.4.0.conv1": "conv"},
    "lstm": {"a": "mlp", "rnn.weight_ih_l0": "rnn"},
    "gru": {"rnn.weight_ih_l0": "rnn"},
    "elman": {"rnn.weight_ih_l0": "rnn"},
    "gru cell in a loop": {"cell.weight_ih": "rnn"},
    "sequence to sequence": {"encoder.weight_ih_l0": "rnn", "embed": "embedding"},
    "a conv called twice": {"stem": "conv"},
    "text cnn": {"embed": "embedding", "convs.0": "conv"},
    "tied embedding and output": {"embed[1]": "residual", "a": "mlp"},
    "experts in one tensor": {"gate": "experts", "up": "mlp"},
    "flatten by flatten": {"conv": "conv", "fc1": "mlp"},
    "patch merging": {"stem": "conv"},
    "spectral norm": {"0.bias": "conv"},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_what_groups_are(name: str) -> None:
    found = kinds_of(sp.trace(CASES[name].build(), CASES[name].inputs()))
    assert {group: found.get(group) for group in EXPECTED[name]} == EXPECTED[name]
    assert set(found.values()) <= set(sp.KINDS)


def test_families_are_made_of_kinds() -> None:
    assert {kind for family in FAMILIES.values() for kind in family} <= set(sp.KINDS)


def test_the_readme_describes_the_same_kinds() -> None:
    text = (Path(__file__).parent.parent / "README.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert {kind for kind in sp.KINDS if any(f"`{kind}`" in line for line in rows)} == set(sp.KINDS)


class Learned(nn.Module):
    """Learned queries that read one another, then the input: no input reaches the first attention."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.stem = nn.Parameter(torch.randn(5, 16)), nn.Linear(6, 16)
        self.own = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
        self.cross = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
        self.head = nn.Linear(16, 3)

    def attend(self, layers: Any, x: Tensor, y: Tensor) -> Tensor:
        q, k, v = (
            f(t).unflatten(-1, (2, -1)).transpose(1, 2) for f, t in zip(layers, (x, y, y), strict=False)
        )
        return layers[3]((torch.softmax(q @ k.mT * 0.3, -1) @ v).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        q = self.queries.expand(x.shape[0], -1, -1)
        q = q + self.attend(self.own, q, q)
        return self.head(q + self.attend(self.cross, q, self.stem(x)))


def test_attention_of_learned_queries() -> None:
    found = kinds_of(sp.trace(Learned(), tokens(6)()))
    assert {name: found[f"{name}.0[0]"] for name in ("own", "cross")} == {"own": "heads", "cross": "heads"}
    assert {name: found[f"{name}.0[1]"] for name in ("own", "cross")} == {
        "own": "qk width",
        "cross": "qk width",
    }
    assert (found["own.3"], found["queries"], found["stem"]) == ("residual", "positions", "mlp")


def test_values_added_over_layers_do_not_make_heads_a_residual() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        q, k, v, w = (f(x).unflatten(-1, (-1, 4)).transpose(1, 2) for f in (net.q, net.k, net.v, net.w))
        y = F.scaled_dot_product_attention(q, k, v + w, scale=0.5)
        return net.o(y.transpose(1, 2).flatten(2))

    layers = {name: nn.Linear(6, 12) for name in "qkvw"}
    found = kinds_of(sp.trace(Net(forward, **layers, o=nn.Linear(12, 3)), tokens(6)()))
    assert found["q[0]"] == "heads"


def test_biases_that_a_router_picks_do_not_make_an_mlp_a_residual() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        chosen = net.router(x).argmax(-1)
        return net.down(F.relu(net.up(x) + net.biases[chosen]))

    layers = {"router": nn.Linear(6, 4), "up": nn.Linear(6, 8, bias=False), "down": nn.Linear(8, 3)}
    net = Net(forward, biases=nn.Parameter(torch.randn(4, 8)), **layers)
    assert kinds_of(sp.trace(net, tokens(6)()))["up"] == "mlp"


def test_a_product_of_two_activations_alone_is_no_attention() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.a(x) @ net.b(x).transpose(-2, -1)

    found = kinds_of(sp.trace(Net(forward, a=nn.Linear(6, 8), b=nn.Linear(6, 8)), tokens(6)()))
    assert found["a"] == "hidden"


def test_a_broadcast_sum_is_no_residual() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(net.body(x) + net.bias(x.mean((2, 3)))[:, :, None, None])

    net = Net(forward, body=conv(3, 8), bias=nn.Linear(3, 8), head=conv(8, 4))
    assert kinds_of(sp.trace(net, image()()))["body"] == "conv"


# -- Hugging Face ------------------------------------------------------------------------------------------------


def ids() -> dict[str, Any]:
    return {"input_ids": torch.arange(16).view(2, 8)}


def uncached() -> dict[str, Any]:
    return {**ids(), "use_cache": False}


def pixels(size: int) -> Callable[[], dict[str, Any]]:
    return lambda: {"pixel_values": torch.randn(2, 3, size, size)}


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
TEXT = {"vocab_size": 50, "max_position_embeddings": 32}
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], dict[str, Any]]]] = {
    "bert": (lambda: tf.BertModel(tf.BertConfig(**SMALL, **TEXT)), ids),
    "vit": (lambda: tf.ViTModel(tf.ViTConfig(**SMALL, image_size=16, patch_size=4)), pixels(16)),
    "gpt2": (
        lambda: tf.GPT2Model(tf.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=32)),
        uncached,
    ),
    "llama": (
        lambda: tf.LlamaModel(
            tf.LlamaConfig(**{**SMALL, "num_attention_heads": 8}, **TEXT, num_key_value_heads=4)
        ),
        uncached,
    ),
    "t5": (
        lambda: tf.T5EncoderModel(
            tf.T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
        ),
        ids,
    ),
    "swin": (
        lambda: tf.SwinModel(
            tf.SwinConfig(image_size=32, patch_size=2, embed_dim=16, depths=[2], num_heads=[4], window_size=4)
        ),
        pixels(32),
    ),
}
HEADS = {
    "bert": {
        "encoder.layer.0.attention.self.query[0]": (2, 4),
        "encoder.layer.1.attention.self.query[0]": (2, 4),
    },
    "vit": {"layers.0.attention.q_proj[0]": (2, 4), "layers.1.attention.q_proj[0]": (2, 4)},
    "gpt2": {"h.0.attn.c_attn[0]": (2, 4), "h.1.attn.c_attn[0]": (2, 4)},
    "llama": {"layers.0.self_attn.q_proj[0]": (2, 4), "layers.1.self_attn.q_proj[0]": (2, 4)},
    "t5": {"encoder.block.0.layer.0.SelfAttention.q[0]": (2, 4)},  # the table of biases is shared
    "swin": {f"encoder.layers.0.blocks.{n}.attention.q_proj[0]": (2, 4) for n in (0, 1)},
}
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.mark.parametrize("name", MODELS)
def test_half_of_the_heads_of_a_published_model(name: str) -> None:
    build, inputs = MODELS[name]
    model, example = build().eval(), inputs()
    found = []

    def prune(net: nn.Module, given: Any) -> nn.Module:
        found.append(sp.prune(net, given, sp.Budget(channels=0.5), only="heads"))
        return found[-1].model

    verdict = judge(model, example, prune)
    assert (verdict.status, cut(found[0])) == ("exact", HEADS[name])
    kind = "kv groups" if name == "llama" else "heads"
    assert [(one.kind, one.kept * 2) for one in found[0].report.kinds] == [
        (kind, found[0].report.kinds[0].channels)
    ]


def test_whole_kv_groups_go_with_their_query_heads() -> None:
    build, inputs = MODELS["llama"]
    result = sp.prune(build().eval(), inputs(), sp.Budget(channels=0.5), only="kv groups")
    attention = result.model.layers[0].self_attn
    shapes = [tuple(p.weight.shape) for p in (attention.q_proj, attention.k_proj, attention.o_proj)]
    assert shapes == [(16, 32), (8, 32), (32, 16)]
    assert result.model.layers[0].mlp.up_proj.weight.shape == (64, 32)


def test_head_dim_keeps_the_scale_at_its_value() -> None:
    build, inputs = MODELS["vit"]
    model = build().eval()
    scale = model.layers[0].attention.scaling
    result = sp.prune(model, inputs(), sp.Budget(channels=0.5), only="head_dim")
    assert set(cut(result).values()) == {(4, 8)}
    assert result.model.layers[0].attention.scaling == scale == 8**-0.5
    assert [one.kind for one in result.report.kinds] == ["qk width", "v width"]


def test_without_an_explicit_scale_head_dim_is_frozen_with_the_reason() -> None:
    case = CASES["fused qkv, unbind, sdpa"]
    with pytest.raises(
        sp.BudgetError, match=r"frozen: 1.attention.qkv\[2\] \(attention without scale= divides"
    ):
        sp.prune(case.build(), case.inputs(), sp.Budget(channels=0.5), only="head_dim")


# -- asking for kinds, and keeping them ----------------------------------------------------------------------------


def block() -> tuple[nn.Module, Tensor]:
    return attention.block(attention.Stored(heads=4)).eval(), tokens(6)()


SIZES = {
    "0": (8, 16),
    "1.attention.q[0]": (2, 4),
    "1.attention.q[1]": (2, 4),
    "1.attention.v": (2, 4),
    "1.mlp.0": (16, 32),
}


@pytest.mark.parametrize(
    ("only", "wanted"),
    [
        ("heads", {"1.attention.q[0]"}),
        ("head_dim", {"1.attention.q[1]", "1.attention.v"}),
        ("mlp", {"1.mlp.0"}),
        ("kind:mlp", {"1.mlp.0"}),
        ("residual", {"0"}),
        (["heads", "mlp"], {"1.attention.q[0]", "1.mlp.0"}),
        (["heads", "head_dim"], {"1.attention.q[0]", "1.attention.q[1]", "1.attention.v"}),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),
)
def test_only_a_kind(only: Any, wanted: set[str]) -> None:
    result = sp.prune(*block(), sp.Budget(channels=0.5), only=only)
    assert cut(result) == {name: SIZES[name] for name in wanted}


@pytest.mark.parametrize("quantity", ["macs", "params"])
def test_kinds_together_under_a_budget(quantity: str) -> None:
    model, x = block()
    result = sp.prune(model, x, sp.Budget(**{quantity: 0.7}), only=["heads", "mlp"])
    assert set(cut(result)) <= {"1.attention.q[0]", "1.mlp.0"}
    count = sp.count_macs if quantity == "macs" else lambda net, _: sp.count_params(net)
    assert 0.6 < count(result.model, x) / count(model, x) <= 0.7


def test_keep_a_kind() -> None:
    result = sp.prune(*block(), sp.Budget(channels=0.5), keep=["residual", "mlp"])
    assert {sp.trace(*block()).groups[0].kind} == {"residual"}
    assert set(cut(result)) <= {"1.attention.q[0]", "1.attention.q[1]", "1.attention.v"}
    assert cut(result)


def test_heads_means_every_kind_of_heads_and_whole_groups_first() -> None:
    build, inputs = MODELS["llama"]
    graph = sp.trace(build().eval(), inputs())
    scores = sp.score(build().eval(), graph)
    for only in ("heads", "kv groups"):
        plan = sp.select(graph, scores, sp.Budget(channels=0.5), only=only)
        assert {g.name: g.count for g in plan.groups if g.count < g.size} == {
            f"layers.{n}.self_attn.q_proj[0]": 2 for n in (0, 1)
        }
    with pytest.raises(sp.BudgetError, match="num_key_value_groups"):  # if self.num_key_value_groups > 1
        sp.select(graph, scores, sp.Budget(channels=0.5), only="queries per group")


def test_a_layer_called_like_a_kind_comes_first() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(F.relu(net.other(F.relu(net.mlp(x)))))

    net = Net(forward, mlp=nn.Linear(6, 8), other=nn.Linear(8, 12), head=nn.Linear(12, 3))
    assert cut(sp.prune(net, row(6)(), sp.Budget(channels=0.5), only="mlp")) == {"mlp": (4, 8)}
    both = {"mlp": (4, 8), "other": (6, 12)}
    assert cut(sp.prune(net, row(6)(), sp.Budget(channels=0.5), only="kind:mlp")) == both


def test_a_kind_that_the_network_has_not_is_an_error_that_lists_its_own() -> None:
    with pytest.raises(sp.InputError, match=r"only='kv groups'.*residual, heads, qk width, v width, mlp"):
        sp.prune(*block(), sp.Budget(channels=0.5), only="kv groups")
    with pytest.raises(sp.InputError, match="is no kind; close names: heads"):
        sp.prune(*block(), sp.Budget(channels=0.5), only="haeds")


def test_heads_that_the_code_ties_to_the_residual_say_so() -> None:
    case = CASES["fused qkv, indexed"]
    with pytest.raises(
        sp.BudgetError, match=r"1.attention.qkv\[1\] \(keeps as many as 0\[0\] \(residual\)\)"
    ):
        sp.prune(case.build(), case.inputs(), sp.Budget(channels=0.5), only="heads")


@pytest.mark.parametrize("name", ["fused qkv, unbind, sdpa", "multi-head attention module", "gqa by expand"])
def test_rewriting_unties_what_the_code_ties(name: str) -> None:
    case = CASES[name]
    for only in ("heads", "head_dim"):
        budget = sp.Budget(channels=0.5)
        result = sp.prune(case.build().eval(), case.inputs(), budget, only=only, rewrite=True)
        assert cut(result)
        assert all(2 * left == size for left, size in cut(result).values())


def test_heads_that_are_left_whole_beside_others_that_are_cut_are_reported() -> None:
    tied, loose = attention.Indexed(heads=4), attention.Stored(heads=4)
    model = nn.Sequential(nn.Linear(6, 16), attention.Block(tied), attention.Block(loose), nn.Linear(16, 5))
    result = sp.prune(model.eval(), tokens(6)(), sp.Budget(channels=0.5), only="heads")
    assert cut(result) == {"2.attention.q[0]": (2, 4)}
    assert (
        dict(result.report.frozen)["1.attention.qkv[1]"]
        == "keeps as many as 0[0] (residual), which is not cut"
    )


def test_a_share_of_what_was_asked_for_is_its_own() -> None:
    """Heads do not count by default; asked for, their share is of the heads there are."""
    model, x = block()
    for share, left in ((0.75, 3), (0.5, 2), (0.25, 1)):
        assert cut(sp.prune(model, x, sp.Budget(channels=share), only="heads")) == {
            "1.attention.q[0]": (left, 4)
        }


def test_bounds_take_kinds() -> None:
    result = sp.prune(*block(), sp.Budget(channels=0.25), only=["heads", "mlp"], min_channels={"heads": 2})
    assert cut(result) == {"1.attention.q[0]": (2, 4), "1.mlp.0": (8, 32)}


def test_rivals_are_the_other_factors_of_a_dimension() -> None:
    groups = {group.name: group for group in sp.trace(*block()).groups}
    assert groups["1.attention.q[0]"].rivals == ("1.attention.q[1]", "1.attention.v")
    assert groups["1.attention.v"].rivals == ("1.attention.q[0]",)
    assert groups["1.mlp.0"].rivals == ()


# -- where it is shown ---------------------------------------------------------------------------------------------


def test_the_table_and_the_report_name_kinds() -> None:
    lines = str(sp.trace(*block())).splitlines()
    assert lines[0].split()[:3] == ["group", "kind", "channels"]
    assert next(line for line in lines if line.startswith("1.attention.v")).split()[1:3] == ["v", "width"]
    result = sp.prune(*block(), sp.Budget(channels=0.5), only=["heads", "mlp"])
    assert "kept   heads 2 of 4 in 1 group; mlp 16 of 32 in 1 group" in str(result.report).splitlines()
