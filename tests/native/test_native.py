"""What the compiled module checks by itself, and that its stub tells the truth."""

from __future__ import annotations

import ast
import inspect
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import vmsnapshot
from tests.conftest import require
from tests.support.fault_server import FaultServer
from tests.support.filesystems import REPOSITORY
from tests.support.host import Host
from tests.support.mounts import read_mounts
from tests.support.processes import run_bounded
from vmsnapshot import _native, cli

STUB = REPOSITORY / "python/vmsnapshot/_native.pyi"
SIGNATURE = "c2lnbmF0dXJl"
# Defaults that are lists, or values of Rust's `Option`.
NOT_WRITTEN = {"include", "exclude", "blob_metadata", "sync_timeout"}
HOST_URI = "http://168.63.129.16/metadata/recsvc/snapshot/dosnapshot"
HOST_HEADERS = [("Backup", "true"), ("Content-type", "application/json")]


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


def test_a_choice_for_unusable_blobs_that_is_none_is_a_value_error(plan: vmsnapshot.Plan) -> None:
    with pytest.raises(ValueError, match="unusable_blobs"):
        vmsnapshot.prepare(plan, unusable_blobs="ignore")  # type: ignore[arg-type]


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    ("blobs", "code"),
    [
        (["", "no uri"], "bad-uri"),
        (["http://127.0.0.1:9/disks/disk", ""], "unsigned-uri"),
        ([uri("refused"), ""], "connect-failed"),
    ],
)
def test_the_first_error_is_raised_when_no_blob_is_usable(
    plan: vmsnapshot.Plan, blobs: list[str], code: str
) -> None:
    phases: list[str] = []
    assert refusal(plan, blobs, unusable_blobs="report", progress=phases.append).code == code
    assert phases[-1] == "connecting to the blobs"


@pytest.mark.parametrize(
    "argument", [{"metadata": {"a-b": "1"}}, {"blob_metadata": [{}]}, {"proxy": "proxy"}]
)
def test_what_concerns_every_blob_is_refused_even_if_unusable_blobs_are_reported(
    plan: vmsnapshot.Plan, argument: dict[str, Any]
) -> None:
    error = refusal(plan, [uri("first"), uri("second")], unusable_blobs="report", **argument)
    assert error.code in ("bad-metadata", "bad-proxy")


@pytest.mark.parametrize("metadata", [{"a-b": "1"}, {"": "1"}, {"a": "x\ny"}, {"a": "1", "A": "2"}])
def test_metadata_that_the_service_does_not_take_is_refused(
    plan: vmsnapshot.Plan, metadata: dict[str, str]
) -> None:
    assert refusal(plan, metadata=metadata).code == "bad-metadata"


def test_metadata_of_each_blob_is_for_every_blob_and_checked_with_that_of_all(
    plan: vmsnapshot.Plan,
) -> None:
    blobs = [uri("first"), uri("second")]
    for count in (1, 3):
        error = refusal(plan, blobs, blob_metadata=[{}] * count)
        assert error.code == "bad-metadata"
        assert f"metadata of {count} blobs" in str(error)
    # A name of all and of one blob is one too many; so is more than the service takes of one.
    assert refusal(plan, blobs, metadata={"a": "1"}, blob_metadata=[{}, {"A": "2"}]).code == "bad-metadata"
    too_much = [{}, {"b": "x" * 8000}]
    assert refusal(plan, blobs, metadata={"a": "x" * 500}, blob_metadata=too_much).code == "bad-metadata"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"uri": "https://168.63.129.16/"}, "bad-host-call"),
        ({"uri": "dosnapshot"}, "bad-host-call"),
        ({"headers": [("Back up", "t0ken")]}, "bad-host-call"),
        ({"headers": [("Backup", "t0ken\r\nHost: other")]}, "bad-host-call"),
        ({"headers": [("content-length", "1")]}, "bad-host-call"),
        ({"time_limit": 0.0}, "bad-time-limit"),
        ({"time_limit": math.nan}, "bad-time-limit"),
        ({"time_limit": 3600.1}, "bad-time-limit"),
    ],
)
def test_a_host_call_that_cannot_be_made_is_refused_without_its_secrets(
    arguments: dict[str, Any], code: str
) -> None:
    good: dict[str, Any] = {"uri": HOST_URI, "headers": HOST_HEADERS, "body": b"t0ken"}
    with pytest.raises(vmsnapshot.PrepareError) as raised:
        vmsnapshot.HostCall(**{**good, **arguments})
    assert raised.value.code == code
    assert "t0ken" not in str(raised.value) + repr(raised.value)


def test_a_host_call_shows_its_uri_without_the_query_and_no_more() -> None:
    call = vmsnapshot.HostCall(f"{HOST_URI}?api-version=t0ken", headers=[("Token", "t0ken")], body=b"t0ken")
    assert call.uri == HOST_URI
    assert repr(call) == str(call) == f"<vmsnapshot.HostCall {HOST_URI}>"
    assert_frozen(call)
    with pytest.raises(TypeError):
        vmsnapshot.HostCall(HOST_URI, headers={"Backup": "true"}, body=b"")  # type: ignore[arg-type]


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
        assert real == set(members) - {"__new__"}, name


def test_the_stub_has_the_parameters_and_defaults_of_every_function() -> None:
    for name, node in stub_names().items():
        if isinstance(node, dict):
            if "__new__" not in node:
                continue
            node = node["__new__"]
            # inspect leaves out the class as it leaves out `self`.
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
            # PyO3 writes only the simplest defaults into the signature, and an ellipsis for the rest.
            assert real == value or (real is ... and argument in NOT_WRITTEN), (name, argument)


@pytest.mark.parametrize(
    "name",
    [name for name, node in stub_names().items() if isinstance(node, dict) and "__new__" not in node],
)
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


def test_a_plan_without_filesystems_freezes_nothing_and_says_of_each_why() -> None:
    planned = vmsnapshot.plan()
    emptied = planned.without_filesystems()
    assert emptied.filesystems == []
    left_out = {skipped.mount_point for skipped in emptied.skipped if skipped.reason == "freeze-not-wanted"}
    assert left_out == {filesystem.mount_point for filesystem in planned.filesystems}
    assert len(emptied.skipped) == len(planned.skipped) + len(planned.filesystems)


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
    assert (report.freeze_doubt_code, report.freeze_doubt) == ("nothing-frozen", report.why)
    assert report.host_call is None
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
def test_a_run_that_freezes_nothing_sends_its_host_call_and_gives_the_answer(plan: vmsnapshot.Plan) -> None:
    with Host(200, b'{"token": "t0ken"}') as host:
        call = vmsnapshot.HostCall(f"{host.uri}?v=1", headers=HOST_HEADERS, body=b'{"taskId": "1"}')
        # Nobody listens on port 9: what went through the proxy would not arrive.
        report = vmsnapshot.prepare(plan, host_call=call, proxy="http://127.0.0.1:9").run()
    assert (report.consistency, report.freeze_doubt_code) == ("crash", "nothing-frozen")
    (request,) = host.requests
    assert (request.path, request.body) == ("/dosnapshot?v=1", b'{"taskId": "1"}')
    assert request.headers == [("Host", host.address), ("Content-Length", "15"), *HOST_HEADERS]
    outcome = report.host_call
    assert outcome is not None
    assert_frozen(outcome)
    assert (outcome.outcome, outcome.http_status, outcome.attempts) == ("answered", 200, 1)
    assert (outcome.body, outcome.body_is_complete) == (host.body, True)
    assert "t0ken" not in repr(outcome) + report.to_json()
    assert json.loads(report.to_json())["host_call"] == {
        "uri": host.uri,
        "outcome": "answered",
        "http_status": 200,
        "body_is_complete": True,
        "error_code": None,
        "message": None,
        "attempts": 1,
        "answer_ms": outcome.answer_ms,
    }
    assert host.uri in [event.subject for event in report.timeline if event.event == "request-sent"]


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    ("status", "attempts", "word"), [(500, 1, "unknown"), (404, 1, "refused"), (503, 2, "refused")]
)
def test_a_host_that_does_not_take_the_snapshots_leaves_none(
    plan: vmsnapshot.Plan, status: int, attempts: int, word: str
) -> None:
    with Host(status, b'{ "error": 1}') as host:
        call = vmsnapshot.HostCall(host.uri, headers=HOST_HEADERS, body=b"{}")
        report = vmsnapshot.prepare(plan, host_call=call).run()
    assert report.consistency == "none"
    assert report.why is not None
    assert word in report.why
    assert report.host_call is not None
    assert (report.host_call.http_status, report.host_call.body) == (status, host.body)
    assert report.host_call.attempts == len(host.requests) == attempts


@pytest.mark.usefixtures("root")
def test_a_host_that_never_answers_is_left_at_its_own_limit(plan: vmsnapshot.Plan) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}/dosnapshot"
        call = vmsnapshot.HostCall(uri, headers=[], body=b"", time_limit=0.2)
        report = vmsnapshot.prepare(plan, host_call=call, thaw_timeout=30.0).run()
    outcome = report.host_call
    assert outcome is not None
    assert (outcome.outcome, outcome.error_code, outcome.http_status) == ("unknown", "NoAnswer", None)
    assert (outcome.body, outcome.body_is_complete, outcome.attempts) == (b"", False, 1)
    assert outcome.answer_ms is not None
    assert 200 <= outcome.answer_ms < 5000


@pytest.mark.usefixtures("root")
def test_a_host_that_cannot_be_reached_is_told_apart_from_a_blob(plan: vmsnapshot.Plan) -> None:
    # Bound and not listening: nobody can connect.
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{bound.getsockname()[1]}/dosnapshot"
        call = vmsnapshot.HostCall(f"{uri}?t0ken", headers=[], body=b"t0ken")
        error = refusal(plan, host_call=call)
    assert error.code == "connect-failed"
    assert f"the host call to `{uri}`" in str(error)
    assert "t0ken" not in str(error)


@pytest.mark.usefixtures("root")
def test_unusable_blobs_are_reported_in_their_places_and_the_others_are_asked(plan: vmsnapshot.Plan) -> None:
    expired = f"sv=2018-03-28&sr=b&sig={SIGNATURE}%3D&se=2020-01-01T00%3A00%3A00Z&sp=r"
    with FaultServer() as server, socket.create_server(("127.0.0.1", 0)) as silent:
        not_tls = f"https://127.0.0.1:{silent.getsockname()[1]}/disks/silent?sig={SIGNATURE}"
        good = server.uri("good").partition("?")[0]
        blobs = [not_tls, f"{good}?{expired}", "", uri("refused"), f"{good}?sig={SIGNATURE}", good]
        report = vmsnapshot.prepare(
            plan,
            blobs,
            blob_metadata=[{"Place": str(place)} for place in range(len(blobs))],
            unusable_blobs="report",
            connect_timeout=0.5,
        ).run()
        (request,) = server.requests()
    assert b"x-ms-meta-Place: 1\r\n" in request.head
    assert [(blob.uri, blob.outcome, blob.error_code, blob.retryable) for blob in report.blobs] == [
        (not_tls.partition("?")[0], "refused", "connect-timeout", True),
        (good, "created", None, False),
        ("", "refused", "bad-uri", False),
        (uri("refused").partition("?")[0], "refused", "connect-failed", True),
        (good, "refused", "duplicate-blob", False),
        (good, "refused", "unsigned-uri", False),
    ]
    for blob in report.blobs:
        is_created = blob.outcome == "created"
        assert (blob.attempts, blob.http_status) == ((1, 201) if is_created else (0, None))
        assert (blob.message is None) == is_created
    assert report.blobs[2].message is not None
    assert "blob 3 of 6" in report.blobs[2].message
    assert (report.consistency, report.freeze_doubt_code) == ("none", "nothing-frozen")
    assert report.why is not None
    assert "disks/silent was refused: connect-timeout" in report.why
    assert SIGNATURE not in report.to_json()


@pytest.mark.usefixtures("root")
def test_a_blob_whose_server_goes_away_before_the_run_is_reported(plan: vmsnapshot.Plan) -> None:
    with FaultServer() as server:
        with socket.create_server(("127.0.0.1", 0)) as going:
            gone = f"http://127.0.0.1:{going.getsockname()[1]}/disks/gone?sig={SIGNATURE}"
            session = vmsnapshot.prepare(plan, [gone, server.uri("good")], unusable_blobs="report")
            going.accept()[0].close()
        report = session.run()
    assert [(blob.outcome, blob.error_code) for blob in report.blobs] == [
        ("refused", "connect-failed"),
        ("created", None),
    ]


@pytest.mark.usefixtures("root")
def test_a_run_ends_before_its_window_when_its_only_blob_goes_away(plan: vmsnapshot.Plan) -> None:
    with socket.create_server(("127.0.0.1", 0)) as going:
        gone = f"http://127.0.0.1:{going.getsockname()[1]}/disks/gone?sig={SIGNATURE}"
        phases: list[str] = []
        session = vmsnapshot.prepare(plan, [gone], unusable_blobs="report", progress=phases.append)
        going.accept()[0].close()
    with pytest.raises(vmsnapshot.PrepareError) as raised:
        session.run()
    assert raised.value.code == "connect-failed"
    assert "freezing" not in phases


@pytest.mark.usefixtures("root")
def test_a_host_is_called_even_if_no_blob_is_usable(plan: vmsnapshot.Plan) -> None:
    with Host(200, b"{}") as host:
        call = vmsnapshot.HostCall(host.uri, headers=HOST_HEADERS, body=b"{}")
        report = vmsnapshot.prepare(plan, [uri(), ""], host_call=call, unusable_blobs="report").run()
    assert [blob.error_code for blob in report.blobs] == ["connect-failed", "bad-uri"]
    assert report.host_call is not None
    assert (report.host_call.http_status, len(host.requests)) == (200, 1)
    assert report.consistency == "none"


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
    assert packages()["vmsnapshot-core"] == {"serde", "strum", "thiserror", "time"}


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
def test_a_process_leaves_its_control_group_and_removes_those_of_the_dead() -> None:
    program = """
import os
from vmsnapshot import _native
before = open("/proc/self/cgroup").read()
if _native.leave_control_group("vmsnapshot-test-leave"):
    assert f"/vmsnapshot-test-leave-{os.getpid()}\\n" in open("/proc/self/cgroup").read()
    # It is there already.
    assert _native.leave_control_group("vmsnapshot-test-leave")
    print("left")
else:
    assert open("/proc/self/cgroup").read() == before
"""
    hierarchies = [
        mount.mount_point for mount in read_mounts() if mount.filesystem_type in ("cgroup", "cgroup2")
    ]
    for _ in range(2):
        process = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, timeout=20, check=True, cwd="/"
        )
    require(process.stdout == b"left\n", "needs cgroup v2, and root, to make a control group")
    left = [path for hierarchy in hierarchies for path in hierarchy.glob("vmsnapshot-test-leave-*")]
    # That of the second process stays; the second removed that of the first.
    assert 1 <= len(left) <= 2
    assert len({path.name for path in left}) == 1
    for path in left:
        path.rmdir()


@pytest.mark.parametrize("name", ["", "a/b", "..", "a\0b", "\u00e4"])
def test_a_name_that_is_not_one_of_a_control_group_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="the name of a control group"):
        _native.leave_control_group(name)


@pytest.mark.usefixtures("root")
def test_a_process_that_ignores_sigchld_can_start_a_watchdog() -> None:
    program = """
import signal, vmsnapshot
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
plan = vmsnapshot.plan(include=[], exclude=["/**"])
assert vmsnapshot.prepare(plan, thaw_timeout=1.0).run().watchdog.released
"""
    run_bounded([sys.executable, "-c", program], limit_seconds=30.0)
