"""The compiled module has what its stub declares. Only the engine makes objects, and they are immutable."""

from __future__ import annotations

import ast
import inspect
import json

import pytest

import vmsnapshot
from tests.engine.api import assert_frozen
from tests.support.filesystems import REPOSITORY
from vmsnapshot import _native

STUB = REPOSITORY / "python/vmsnapshot/_native.pyi"
# Defaults that are lists, or values of Rust's `Option`.
NOT_WRITTEN = {"include", "exclude", "blob_metadata", "sync_timeout", "quiescers", "command"}


def stub_names() -> dict[str, dict[str, ast.FunctionDef] | ast.FunctionDef]:
    names: dict[str, dict[str, ast.FunctionDef] | ast.FunctionDef] = {}
    for node in ast.parse(STUB.read_text()).body:
        if isinstance(node, ast.ClassDef):
            names[node.name] = {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}
        elif isinstance(node, ast.FunctionDef):
            names[node.name] = node
    return names


def test_the_stub_has_every_name_of_the_module_and_no_other() -> None:
    public = {name for name in vars(_native) if not name.startswith("_")}
    assert public == set(stub_names())


def test_the_stub_has_every_member_of_every_class_and_no_other() -> None:
    for name, members in stub_names().items():
        if isinstance(members, ast.FunctionDef):
            continue
        real = {member for member in vars(getattr(_native, name)) if not member.startswith("_")}
        real |= {member for member in ("__enter__", "__exit__") if member in vars(getattr(_native, name))}
        assert real == set(members) - {"__new__"}, name


def test_the_stub_has_the_parameters_and_defaults_of_every_function() -> None:
    for name, node in stub_names().items():
        if isinstance(node, dict):
            if "__new__" not in node:
                continue
            node = node["__new__"]
            # inspect omits `cls`, as it omits `self`.
            del node.args.args[0]
        parameters = inspect.signature(getattr(_native, name)).parameters
        arguments = [*node.args.args, *node.args.kwonlyargs]
        assert [argument.arg for argument in arguments] == list(parameters), name
        keyword_only = {argument.arg for argument in node.args.kwonlyargs}
        assert keyword_only == {
            parameter.name
            for parameter in parameters.values()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }, name
        defaults = dict(zip([argument.arg for argument in node.args.kwonlyargs], node.args.kw_defaults))
        for argument, default in defaults.items():
            value = ast.literal_eval(default) if default is not None else inspect.Parameter.empty
            real = parameters[argument].default
            # PyO3 puts only simple defaults into the signature, and an ellipsis in place of the others.
            assert real == value or (real is ... and argument in NOT_WRITTEN), (name, argument)


@pytest.mark.parametrize(
    "name",
    [name for name, node in stub_names().items() if isinstance(node, dict) and "__new__" not in node],
)
def test_only_the_engine_can_make_an_object(name: str) -> None:
    with pytest.raises(TypeError):
        getattr(_native, name)()


def test_a_plan_cannot_be_changed(plan: vmsnapshot.Plan) -> None:
    assert_frozen(plan)
    assert_frozen(plan.skipped[0])
    # The attribute returns a copy of the list.
    plan.skipped.clear()
    assert plan.skipped
    document = json.loads(plan.to_json())
    assert document["filesystems"] == []
    assert [item["mount_point"] for item in document["skipped"]]


def test_a_plan_without_filesystems_gives_a_reason_for_each_that_is_left_out() -> None:
    planned = vmsnapshot.plan()
    emptied = planned.without_filesystems()
    assert emptied.filesystems == []
    left_out = {skipped.mount_point for skipped in emptied.skipped if skipped.reason == "freeze-not-wanted"}
    assert left_out == {filesystem.mount_point for filesystem in planned.filesystems}
    assert len(emptied.skipped) == len(planned.skipped) + len(planned.filesystems)


def test_the_package_has_every_name_of_its_all() -> None:
    for name in vmsnapshot.__all__:
        assert hasattr(vmsnapshot, name), name
    assert vmsnapshot.__version__ == _native.version()
