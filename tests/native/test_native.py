"""What the compiled module checks by itself, and that its stub tells the truth."""

from __future__ import annotations

import ast
import inspect
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import vmsnapshot
from tests.support.filesystems import REPOSITORY
from tests.support.processes import run_bounded
from vmsnapshot import _native, cli

STUB = REPOSITORY / "python/vmsnapshot/_native.pyi"
SIGNATURE = "c2lnbmF0dXJl"
# Defaults that are lists, or values of Rust's `Option`.
NOT_WRITTEN = {"include", "exclude", "sync_timeout"}


def uri(blob: str = "disk", *, query: str = f"sv=2018-03-28&sr=b&sig={SIGNATURE}%3D&sp=rw") -> str:
    # Nobody listens on port 9 of this machine, and nothing here gets as far as asking.
    return f"http://127.0.0.1:9/disks/{blob}?{query}"


# A plan that cannot be made any smaller has to be asked for by a pattern, so `prepare` is given this one:
# all arguments are checked before anything of the plan is opened.
@pytest.fixture(scope="module")
def plan() -> vmsnapshot.Plan:
    """A plan of this machine with everything excluded; nothing of it could ever be frozen."""
    made = vmsnapshot.plan(exclude=["/**"])
    assert made.filesystems == []
    return made


def refusal(
    plan: vmsnapshot.Plan, blobs: list[str] | None = None, /, **options: Any
) -> vmsnapshot.PrepareError:
    with pytest.raises(vmsnapshot.PrepareError) as raised:
        vmsnapshot.prepare(plan, blobs or [], **options)
    assert SIGNATURE not in str(raised.value) + repr(raised.value) + str(raised.value.hint)
    return raised.value


# Arguments.


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf, -math.inf, 3600.1, 1e300, 0.009])
def test_a_thaw_timeout_that_is_none_is_refused(plan: vmsnapshot.Plan, seconds: float) -> None:
    assert refusal(plan, thaw_timeout=seconds).code == "bad-thaw-timeout"


@pytest.mark.parametrize("name", ["sync_timeout", "connect_timeout"])
@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf, 3600.1])
def test_another_limit_that_is_none_is_refused(plan: vmsnapshot.Plan, name: str, seconds: float) -> None:
    error = refusal(plan, None, **{name: seconds})
    assert error.code == "bad-time-limit"
    assert name.replace("_", " ") in str(error)


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        ("", "bad-uri"),
        ("no uri", "bad-uri"),
        (uri().replace("http:", "ftp:"), "bad-uri"),
        ("http://127.0.0.1:9/disks/disk", "unsigned-uri"),
        (uri(query="sv=1&sr=b&sp=rw"), "unsigned-uri"),
    ],
)
def test_a_bad_uri_is_named_by_its_position(plan: vmsnapshot.Plan, bad: str, code: str) -> None:
    error = refusal(plan, [uri("first"), bad, uri("third")])
    assert error.code == code
    assert "blob 2 of 3" in str(error)


def test_an_expired_sas_is_refused(plan: vmsnapshot.Plan) -> None:
    query = f"sv=2018-03-28&sr=b&sig={SIGNATURE}%3D&se=2020-01-01T00%3A00%3A00Z&sp=rw"
    assert refusal(plan, [uri(query=query)]).code == "expired-sas"


def test_two_equal_blobs_are_refused(plan: vmsnapshot.Plan) -> None:
    assert refusal(plan, [uri("disk"), uri("disk")]).code == "duplicate-blob"


@pytest.mark.parametrize("metadata", [{"a-b": "1"}, {"": "1"}, {"a": "x\ny"}, {"a": "1", "A": "2"}])
def test_metadata_that_the_service_does_not_take_is_refused(
    plan: vmsnapshot.Plan, metadata: dict[str, str]
) -> None:
    assert refusal(plan, metadata=metadata).code == "bad-metadata"


@pytest.mark.parametrize("proxy", ["ftp://proxy:1", "proxy", "http://user:passw0rd@"])
def test_a_bad_proxy_is_refused_without_its_password(plan: vmsnapshot.Plan, proxy: str) -> None:
    error = refusal(plan, proxy=proxy)
    assert error.code == "bad-proxy"
    assert "passw0rd" not in str(error)


@pytest.mark.parametrize("arguments", [{"blobs": 1}, {"thaw_timeout": "1"}, {"no_such_argument": 1}])
def test_an_argument_of_another_type_is_a_type_error(plan: vmsnapshot.Plan, arguments: Any) -> None:
    with pytest.raises(TypeError):
        vmsnapshot.prepare(plan, **arguments)


@pytest.mark.parametrize(
    ("pattern", "code"), [("/no/such", "no-such-mount"), ("/no/*", "pattern-matches-nothing"), ("[", None)]
)
def test_a_pattern_that_names_nothing_is_a_plan_error(pattern: str, code: str | None) -> None:
    with pytest.raises(vmsnapshot.PlanError) as raised:
        vmsnapshot.plan(include=[pattern])
    assert raised.value.code == (code or "bad-pattern")


def test_prepare_without_the_privilege_is_refused(plan: vmsnapshot.Plan) -> None:
    if os.geteuid() != 0:
        assert refusal(plan).code == "not-privileged"
        return
    program = (
        "import vmsnapshot\n"
        "try: vmsnapshot.prepare(vmsnapshot.plan(exclude=['/**']))\n"
        "except vmsnapshot.PrepareError as error: print(error.code)"
    )
    words = ["setpriv", "--reuid=65534", "--clear-groups", "--inh-caps=-all", sys.executable, "-c", program]
    finished = subprocess.run(words, cwd="/", capture_output=True, timeout=20, check=False)
    assert finished.stdout == b"not-privileged\n", finished.stderr.decode()


# Classes and the stub.


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
        assert real == set(members), name


def test_the_stub_has_the_parameters_and_defaults_of_every_function() -> None:
    for name, node in stub_names().items():
        if not isinstance(node, ast.FunctionDef):
            continue
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
            # PyO3 writes only the simplest defaults into the signature, and an ellipsis for the rest.
            assert real == value or (real is ... and argument in NOT_WRITTEN), (name, argument)


@pytest.mark.parametrize("name", [name for name, node in stub_names().items() if isinstance(node, dict)])
def test_a_class_is_made_by_the_engine_only(name: str) -> None:
    with pytest.raises(TypeError):
        getattr(_native, name)()


def assert_frozen(value: object) -> None:
    for name in [name for name in dir(value) if not name.startswith("_")] + ["anything"]:
        with pytest.raises(AttributeError):
            setattr(value, name, None)


def test_a_plan_cannot_be_changed(plan: vmsnapshot.Plan) -> None:
    assert_frozen(plan)
    assert_frozen(plan.skipped[0])
    # A list that was given out is a copy.
    plan.skipped.clear()
    assert plan.skipped
    document = json.loads(plan.to_json())
    assert document["filesystems"] == []
    assert [item["mount_point"] for item in document["skipped"]]


def test_the_package_offers_all_that_it_says() -> None:
    for name in vmsnapshot.__all__:
        assert hasattr(vmsnapshot, name), name
    assert vmsnapshot.__version__ == _native.version()


@pytest.mark.usefixtures("root")
def test_a_session_runs_once_and_not_after_it_was_closed(plan: vmsnapshot.Plan) -> None:
    session = vmsnapshot.prepare(plan, thaw_timeout=1.0)
    report = session.run()
    # There was nothing to freeze, so nothing is consistent, and nothing is wrong.
    assert (report.filesystems, report.consistent, report.all_thawed) == ([], False, True)
    assert report.why is not None
    for value in (session, report, report.mode, report.watchdog, report.timeline[0]):
        assert_frozen(value)
    with pytest.raises(RuntimeError):
        session.run()
    session.close()
    with vmsnapshot.prepare(plan, thaw_timeout=1.0) as other:
        pass
    assert other.run_id != session.run_id
    with pytest.raises(RuntimeError):
        other.run()


@pytest.mark.usefixtures("root")
def test_what_progress_raises_ends_the_preparation(plan: vmsnapshot.Plan) -> None:
    def stop(sentence: str) -> None:
        raise ValueError(sentence)

    with pytest.raises(ValueError, match="opening the filesystems"):
        vmsnapshot.prepare(plan, progress=stop)
    # Everything was given back: the next one finds no other run.
    vmsnapshot.prepare(plan).close()


# Between the layers.


def test_every_code_that_decides_an_exit_status_is_one_of_the_engine() -> None:
    sources = "".join(path.read_text() for path in Path(REPOSITORY / "rust").glob("*/src/**/*.rs"))
    for code in {*cli.NOT_THE_ARGUMENTS_CODES, cli.LEFT_FROZEN_CODE}:
        assert f'=> "{code}"' in sources, code


def packages() -> dict[str, set[str]]:
    """Each package of the workspace, with what it depends on outside of its tests and build."""
    output = subprocess.run(
        ["cargo", "metadata", "--offline", "--locked", "--no-deps", "--format-version=1"],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        timeout=60,
    ).stdout
    return {
        package["name"]: {item["name"] for item in package["dependencies"] if item["kind"] is None}
        for package in json.loads(output)["packages"]
    }


def test_only_the_engine_knows_the_network_and_only_native_knows_python() -> None:
    found = packages()
    network = {"hyper", "hyper-util", "tokio", "rustls", "tokio-rustls", "rustls-native-certs"}
    for name, dependencies in found.items():
        if name != "vmsnapshot-engine":
            assert not dependencies & network, name
        if name != "vmsnapshot-native":
            assert "pyo3" not in dependencies, name
    assert network <= found["vmsnapshot-engine"]
    assert "pyo3" in found["vmsnapshot-native"]


def test_the_core_knows_nothing_of_the_machine() -> None:
    assert packages()["vmsnapshot-core"] == {"serde", "thiserror", "time"}


def test_the_layers_depend_on_what_is_below_them_only() -> None:
    own = {
        name: {item for item in dependencies if item.startswith("vmsnapshot-")}
        for name, dependencies in packages().items()
    }
    assert own == {
        "vmsnapshot-core": set(),
        "vmsnapshot-sys": {"vmsnapshot-core"},
        "vmsnapshot-watchdog": {"vmsnapshot-core", "vmsnapshot-sys"},
        "vmsnapshot-engine": {"vmsnapshot-core", "vmsnapshot-sys"},
        "vmsnapshot-native": {"vmsnapshot-core", "vmsnapshot-engine"},
    }


def test_unsafe_code_is_in_sys_only() -> None:
    for path in Path(REPOSITORY / "rust").glob("*/src/**/*.rs"):
        if path.relative_to(REPOSITORY).parts[1] != "sys":
            code = [line.partition("//")[0] for line in path.read_text().splitlines()]
            assert not any("unsafe {" in line or "unsafe impl" in line for line in code), path


@pytest.mark.usefixtures("root")
def test_a_forked_child_that_closes_its_copy_of_a_session_leaves_the_run_alone() -> None:
    program = """
import os, vmsnapshot
plan = vmsnapshot.plan(include=[], exclude=["/**"])
session = vmsnapshot.prepare(plan, thaw_timeout=1.0)
child = os.fork()
if child == 0:
    session.close()
    try:
        session.run()
    except RuntimeError:
        del session
        os._exit(7)
    os._exit(8)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert session.run_id in [run["run_id"] for run in vmsnapshot.status()["runs"]]
try:
    vmsnapshot.prepare(plan)
except vmsnapshot.PrepareError as error:
    assert error.code == "another-run", error.code
else:
    raise AssertionError("a second run was prepared beside the first")
assert session.run().all_thawed
"""
    run_bounded([sys.executable, "-c", program], limit_seconds=30.0)


@pytest.mark.usefixtures("root")
def test_a_process_that_ignores_sigchld_can_start_a_watchdog() -> None:
    program = """
import signal, vmsnapshot
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
plan = vmsnapshot.plan(include=[], exclude=["/**"])
assert vmsnapshot.prepare(plan, thaw_timeout=1.0).run().watchdog.released
"""
    run_bounded([sys.executable, "-c", program], limit_seconds=30.0)
