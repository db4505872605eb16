from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from structprune import plan as plan_module
from structprune.errors import InputError, PlanError
from structprune.plan import (
    AttributeEdit,
    Budget,
    GroupPlan,
    PruningPlan,
    plan_digest,
    plans_from_json,
    plans_to_json,
)

PRINT = "0123456789abcdef" * 4


def two_layers(**changes: Any) -> PruningPlan:
    """Linear(3, 8) keeps the outputs 0, 1, 2 and 5; Linear(8, 2) takes them in."""
    keep = (0, 1, 2, 5)
    fields: dict[str, Any] = {
        "fingerprint": PRINT,
        "groups": (GroupPlan("0", 8, keep),),
        "tensors": {"1.weight": {1: keep}, "0.weight": {0: keep}, "0.bias": {0: keep}},
        "shapes": {"0.weight": (8, 3), "0.bias": (8,), "1.weight": (2, 8)},
        "attributes": (AttributeEdit("", ("config", "width"), 8, 4),),
        "budget": Budget(macs=0.5),
        "criterion": "l2",
        "scope": "global",
        "remaining": {"macs": 0.5},
    }
    return PruningPlan(**(fields | changes))


def test_json_says_exactly_what_the_plan_says() -> None:
    body = json.loads(two_layers().to_json())
    assert body["schema_version"] == 3
    assert body["plans"] == [
        {
            "fingerprint": PRINT,
            "groups": [{"name": "0", "size": 8, "keep": [[0, 3], [5, 6]]}],
            "tensors": {
                "0.weight": {"shape": [8, 3], "keep": {"0": [[0, 3], [5, 6]]}},
                "0.bias": {"shape": [8], "keep": {"0": [[0, 3], [5, 6]]}},
                "1.weight": {"shape": [2, 8], "keep": {"1": [[0, 3], [5, 6]]}},
            },
            "attributes": [{"module": "", "path": ["config", "width"], "old": 8, "new": 4}],
            "budget": {"macs": 0.5},
            "criterion": "l2",
            "scope": "global",
            "remaining": {"macs": 0.5},
        }
    ]


@pytest.mark.parametrize("keep", [(0,), (7,), (0, 2, 4, 6), tuple(range(8)), (0, 1, 3, 4, 6, 7)])
def test_json_round_trip(keep: tuple[int, ...]) -> None:
    plan = two_layers(
        groups=(GroupPlan("0", 8, keep),),
        tensors={"0.weight": {0: keep}, "0.bias": {0: keep}, "1.weight": {1: keep}},
        budget=None,
    )
    assert PruningPlan.from_json(plan.to_json()) == plan
    assert PruningPlan.from_json(plan.to_json().encode()) == plan


def test_text_does_not_depend_on_the_order_of_tensors() -> None:
    plan = two_layers()
    other = two_layers(
        tensors=dict(reversed(plan.tensors.items())), shapes=dict(reversed(plan.shapes.items()))
    )
    assert plan.to_json() == other.to_json()


def test_digest_follows_the_content_alone() -> None:
    plan = two_layers()
    reformatted = json.dumps(json.loads(plan.to_json()) | {"structprune_version": "9.9"}, indent=3)
    assert plan_digest(plans_from_json(reformatted)) == plan_digest([plan])
    assert plan_digest([two_layers(scope="layer")]) != plan_digest([plan])
    assert plan_digest([plan, plan]) != plan_digest([plan])


def test_several_plans_keep_their_order() -> None:
    first, second = two_layers(), two_layers(criterion="l1")
    assert plans_from_json(plans_to_json([first, second])) == (first, second)
    with pytest.raises(PlanError, match="holds 2 plans"):
        PruningPlan.from_json(plans_to_json([first, second]))


def test_new_shape() -> None:
    assert two_layers().new_shape("0.weight") == (4, 3)
    assert two_layers().new_shape("1.weight") == (2, 4)


def test_numpy_indices_become_plain_tuples() -> None:
    plan = two_layers(tensors={name: {0: np.array([0, 1])} for name in ("0.weight", "0.bias", "1.weight")})
    assert plan.tensors["0.bias"][0] == (0, 1)
    assert type(plan.tensors["0.bias"][0][0]) is int
    assert GroupPlan("g", 4, (np.int64(1), np.int64(3))).keep == (1, 3)  # type: ignore[arg-type]


def test_plan_needs_no_torch() -> None:
    """Only the package's face may import torch: it is stood in for by an empty module with the same files."""
    code = (
        "import sys, types\n"
        "sys.modules['structprune'] = types.ModuleType('structprune')\n"
        "sys.modules['structprune'].__path__ = [sys.argv[1]]\n"
        "import structprune.plan\n"
        "sys.exit('torch' in sys.modules)"
    )
    folder = str(Path(plan_module.__file__).parent)
    assert subprocess.run([sys.executable, "-c", code, folder], check=False).returncode == 0


BAD_PLANS: dict[str, dict[str, Any]] = {
    "fingerprint": {"fingerprint": "abc"},
    "tensor without shape": {"shapes": {"0.weight": (8, 3), "0.bias": (8,)}},
    "dim outside the shape": {"tensors": {"0.weight": {2: (0,)}, "0.bias": {0: (0,)}, "1.weight": {1: (0,)}}},
    "group twice": {"groups": (GroupPlan("0", 8, (1,)), GroupPlan("0", 8, (1,)))},
    "edit twice": {"attributes": (AttributeEdit("a", ("n",), 8, 4), AttributeEdit("a", ("n",), 8, 5))},
}


@pytest.mark.parametrize("changes", BAD_PLANS.values(), ids=BAD_PLANS.keys())
def test_contradictory_plan_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(PlanError):
        two_layers(**changes)


@pytest.mark.parametrize(
    "keep",
    [(), (3, 1), (1, 1), (-1, 2), (0, 8), (0.0, 1.0), (True, False), (0, 10**30), ((0, 1),), "01"],
    ids=str,
)
def test_kept_positions_must_be_sorted_unique_and_inside(keep: Any) -> None:
    with pytest.raises(PlanError, match="group 'g'"):
        GroupPlan("g", 8, keep)
    with pytest.raises(PlanError, match=r"tensor '0\.weight' dim 0"):
        two_layers(tensors={"0.weight": {0: keep}, "0.bias": {0: (0,)}, "1.weight": {1: (0,)}})


@pytest.mark.parametrize("path", [(), (0,), ("__class__",), ("config", "__dict__", "x")], ids=str)
def test_edit_paths_begin_with_an_attribute_and_leave_python_alone(path: Any) -> None:
    with pytest.raises(PlanError):
        AttributeEdit("m", path, 8, 4)


@pytest.mark.parametrize(
    "arguments",
    [
        *({}, {"latency": 0.5, "throughput": 9.0}, {"macs": 0}, {"macs": 1.01}, {"params": -0.1}),
        *({"channels": float("nan")}, {"macs": True}, {"macs": "0.5"}),
    ],
    ids=str,
)
def test_a_budget_is_a_fraction_of_something(arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="Budget"):
        Budget(**arguments)


def test_whole_budget() -> None:
    assert (Budget(channels=1).quantity, Budget(channels=1).fraction) == ("channels", 1.0)


def spoiled(path: str, value: Any) -> str:
    """The good plan's text with one place (keys joined by '/') set to a value."""
    body = json.loads(two_layers().to_json())
    *way, last = path.split("/")
    place = body
    for key in way:
        place = place[int(key)] if isinstance(place, list) else place[key]
    place[int(last) if isinstance(place, list) else last] = value
    return json.dumps(body)


KEEP = "plans/0/tensors/0.weight/keep/0"
HOSTILE = {
    "empty text": "",
    "not JSON": "{",
    "not an object": "[]",
    "no fields": "{}",
    "deep nesting": "[" * 200_000,
    "a number of many digits": '{"schema_version": ' + "9" * 10_000 + "}",
    "another version": spoiled("schema_version", 4),
    "version as text": spoiled("schema_version", "1"),
    "version as bool": spoiled("schema_version", True),
    "no plans": spoiled("plans", []),
    "unknown key": spoiled("plans/0/extra", 1),
    "unknown key at the top": spoiled("extra", 1),
    "out of range": spoiled(KEEP, [[0, 9]]),
    "negative": spoiled(KEEP, [[-1, 3]]),
    "negative stop": spoiled(KEEP, [[0, -1]]),
    "empty range": spoiled(KEEP, [[3, 3]]),
    "backward range": spoiled(KEEP, [[5, 2]]),
    "nothing kept": spoiled(KEEP, []),
    "duplicate": spoiled(KEEP, [[0, 3], [2, 5]]),
    "unsorted": spoiled(KEEP, [[5, 6], [0, 3]]),
    "huge range": spoiled(KEEP, [[0, 10**12]]),
    "huge range in a group": spoiled("plans/0/groups/0/keep", [[0, 10**12]]),
    "float": spoiled(KEEP, [[0, 3.0]]),
    "text for a number": spoiled(KEEP, [[0, "3"]]),
    "bool for a number": spoiled(KEEP, [[False, True]]),
    "three numbers": spoiled(KEEP, [[0, 3, 1]]),
    "flat list": spoiled(KEEP, [0, 3]),
    "null": spoiled(KEEP, None),
    "dim outside": spoiled("plans/0/tensors/0.weight/keep/2", [[0, 1]]),
    "negative dim": spoiled("plans/0/tensors/0.weight/keep/-1", [[0, 1]]),
    "dim spelled twice": spoiled("plans/0/tensors/0.weight/keep/00", [[0, 1]]),
    "negative shape": spoiled("plans/0/tensors/0.weight/shape", [-8, 3]),
    "scalar tensor": spoiled("plans/0/tensors/0.weight/shape", []),
    "fingerprint as number": spoiled("plans/0/fingerprint", 1),
    "fingerprint of another form": spoiled("plans/0/fingerprint", "zz"),
    "budget of nothing": spoiled("plans/0/budget", {}),
    "budget of two latencies": spoiled("plans/0/budget", {"latency": 0.5, "latency_ms": 5.0}),
    "budget above one": spoiled("plans/0/budget", {"macs": 2.0}),
    "budget of another quantity": spoiled("plans/0/budget", {"price": 0.5}),
    "attribute path of Python": spoiled("plans/0/attributes/0/path", ["__class__"]),
    "attribute path empty": spoiled("plans/0/attributes/0/path", []),
    "attribute path with a float": spoiled("plans/0/attributes/0/path", ["a", 1.5]),
    "attribute value as text": spoiled("plans/0/attributes/0/new", "4"),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_is_refused(text: str) -> None:
    with pytest.raises(PlanError) as caught:
        PruningPlan.from_json(text)
    assert 10 < len(str(caught.value)) < 500


def test_declared_sizes_cannot_exhaust_memory() -> None:
    body = json.loads(two_layers().to_json())
    body["plans"][0]["tensors"]["0.weight"] = {"shape": [10**12, 3], "keep": {"0": [[0, 10**12]]}}
    body["plans"][0]["groups"] = [
        {"name": str(i), "size": 10**7, "keep": [[i, 10**6 + i]]} for i in range(50)
    ]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PlanError, match="expands to more than"):
        PruningPlan.from_json(json.dumps(body))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 600 * 2**20


def test_one_list_named_by_many_tensors_is_expanded_once() -> None:
    body = json.loads(two_layers().to_json())
    wide = {"shape": [4_000_000], "keep": {"0": [[0, 3_000_000]]}}
    body["plans"][0]["tensors"] = {str(i): wide for i in range(50)}
    plan = PruningPlan.from_json(json.dumps(body))
    assert len({id(dims[0]) for dims in plan.tensors.values()}) == 1


def test_other_version_says_what_to_do() -> None:
    with pytest.raises(PlanError, match=r"schema version 4.*reads versions \(1, 2, 3\).*install"):
        PruningPlan.from_json(json.dumps({"schema_version": 4, "structprune_version": "7.0", "new": "field"}))
