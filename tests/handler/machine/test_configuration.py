"""The owner's settings are read from the configuration files, and bad content there does no harm."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmsnapshot.handler.machine.configuration import (
    Applications,
    VmBackupConfiguration,
    read_applications,
    read_vmbackup_configuration,
    read_waagent_configuration,
)
from vmsnapshot.handler.settings.wire import SnapshotMode

DEFAULTS = VmBackupConfiguration()

# A file with every option, each with a value that is not its default.
FULL = """\
# Of an administrator.
[SnapshotThread]
timeout = 12.5
MountsToSkip = /data, /srv/a b ,, /
SnapshotMethod: onlyHost
UploadStatusAndLog = False
WriteLog = False
LoggingOff = 1
disable_logging = 2
onlyLocalFilesystems = true
RealConsistencyNumbers = True
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vmbackup.conf"


def options(path: Path, *lines: str) -> VmBackupConfiguration:
    path.write_text("\n".join(("[SnapshotThread]", *lines, "")))
    return read_vmbackup_configuration(path)


def without_warnings(configuration: VmBackupConfiguration) -> VmBackupConfiguration:
    return dataclasses.replace(configuration, warnings=())


def test_every_option_is_read(path: Path) -> None:
    path.write_text(FULL)
    assert read_vmbackup_configuration(path) == VmBackupConfiguration(
        thaw_timeout_seconds=12.5,
        mounts_to_skip=("/data", "/srv/a b", "/"),
        snapshot_method=SnapshotMode.ONLY_HOST,
        upload_status_and_log=False,
        write_log=False,
        discard_lines_while_frozen=True,
        events_disabled=True,
        only_local_filesystems=True,
        real_consistency_numbers=True,
    )


def test_options_are_found_whatever_their_case(path: Path) -> None:
    assert options(path, "TIMEOUT=5", "mountstoskip=/a").mounts_to_skip == ("/a",)
    assert read_vmbackup_configuration(path).thaw_timeout_seconds == 5


def test_missing_file_is_all_defaults_without_a_warning(path: Path) -> None:
    assert read_vmbackup_configuration(path) == DEFAULTS


def test_empty_values_are_defaults_without_a_warning(path: Path) -> None:
    lines = [line.split(" ")[0].rstrip(":") + " =" for line in FULL.splitlines()[2:]]
    assert options(path, *lines) == DEFAULTS


@pytest.mark.parametrize(
    "content",
    [b"timeout = 5\n", b"[SnapshotThread]\ntimeout = 5\nno option\n", b"\0\xff\xfe[[[", b"x" * 100_000],
)
def test_file_that_is_no_ini_file_is_all_defaults_with_a_warning(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    configuration = read_vmbackup_configuration(path)
    assert without_warnings(configuration) == DEFAULTS
    assert len(configuration.warnings) == 1


def test_file_that_cannot_be_read_is_all_defaults_with_a_warning(tmp_path: Path) -> None:
    configuration = read_vmbackup_configuration(tmp_path)
    assert without_warnings(configuration) == DEFAULTS
    assert len(configuration.warnings) == 1


def test_warning_does_not_repeat_a_broken_file(path: Path) -> None:
    path.write_text("[SnapshotThread]\nhttps://a/b?sv=1&c2VjcmV0\n")
    assert "c2VjcmV0" not in "".join(read_vmbackup_configuration(path).warnings)


def test_byte_order_mark_and_windows_line_ends_do_no_harm(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf[SnapshotThread]\r\ntimeout = 5\r\nMountsToSkip = /a\r\n")
    configuration = read_vmbackup_configuration(path)
    assert (configuration.thaw_timeout_seconds, configuration.mounts_to_skip) == (5, ("/a",))
    assert configuration.warnings == ()


def test_last_of_two_options_wins(path: Path) -> None:
    assert options(path, "timeout = 5", "timeout = 6").thaw_timeout_seconds == 6
    assert options(path, "timeout = 5", "[SnapshotThread]", "timeout = 7").thaw_timeout_seconds == 7


def test_percent_sign_is_a_character_like_others(path: Path) -> None:
    assert options(path, "MountsToSkip = /a%20b,/%(x)s,/100%").mounts_to_skip == ("/a%20b", "/%(x)s", "/100%")


def test_mount_point_that_is_not_utf_8_is_a_pattern_of_the_engine(path: Path) -> None:
    path.write_bytes(b"[SnapshotThread]\nMountsToSkip = /data\xff,/srv/\xc3\xa9\n")
    assert read_vmbackup_configuration(path).mounts_to_skip == ("/data\\xff", "/srv/\u00e9")


@pytest.mark.parametrize(("value", "seconds"), [("0.01", 0.01), ("3600", 3600), ("  7 ", 7), ("1e1", 10)])
def test_timeout_may_be_any_number_in_its_range(path: Path, value: str, seconds: float) -> None:
    configuration = options(path, f"timeout = {value}")
    assert configuration.thaw_timeout_seconds == seconds
    assert configuration.warnings == ()


@pytest.mark.parametrize("value", ["0", "-5", "0.009", "3601", "nan", "inf", "1e999", "sixty", "60s"])
def test_timeout_out_of_range_is_the_default_with_a_warning(path: Path, value: str) -> None:
    configuration = options(path, f"timeout = {value}")
    assert configuration.thaw_timeout_seconds == 60
    assert len(configuration.warnings) == 1
    assert value in configuration.warnings[0]


@pytest.mark.parametrize("mode", SnapshotMode)
def test_every_snapshot_method_is_known(path: Path, mode: SnapshotMode) -> None:
    configuration = options(path, f"SnapshotMethod = {mode.value}")
    assert configuration.snapshot_method is mode
    assert configuration.warnings == ()


def test_unknown_snapshot_method_is_the_host_first(path: Path) -> None:
    configuration = options(path, "SnapshotMethod = onlyMagic")
    assert configuration.snapshot_method is SnapshotMode.FIRST_HOST_THEN_GUEST
    assert len(configuration.warnings) == 1


@pytest.mark.parametrize("option", ["UploadStatusAndLog", "WriteLog"])
@pytest.mark.parametrize(
    ("value", "is_on", "warnings"),
    [("True", True, 0), ("true", True, 0), ("False", False, 0), ("yes", False, 1), ("1", False, 1)],
)
def test_only_true_leaves_uploads_and_log_on(
    path: Path, option: str, value: str, is_on: bool, warnings: int
) -> None:
    configuration = options(path, f"{option} = {value}")
    assert {
        "UploadStatusAndLog": configuration.upload_status_and_log,
        "WriteLog": configuration.write_log,
    } == {"UploadStatusAndLog": True, "WriteLog": True, option: is_on}
    assert len(configuration.warnings) == warnings


@pytest.mark.parametrize(
    ("value", "discards", "disables", "warnings"),
    [
        ("0", False, False, 0),
        ("1", True, True, 0),
        ("2", False, True, 0),
        ("yes", False, False, 2),
        ("nan", False, False, 2),
    ],
)
def test_numbers_switch_logging_off(
    path: Path, value: str, discards: bool, disables: bool, warnings: int
) -> None:
    configuration = options(path, f"LoggingOff = {value}", f"disable_logging = {value}")
    assert (configuration.discard_lines_while_frozen, configuration.events_disabled) == (discards, disables)
    assert len(configuration.warnings) == warnings


def test_option_without_a_meaning_is_named_once(path: Path) -> None:
    obsolete = ["seqsnapshot", "SafeFreezeWaitInSeconds", "sudo_off", "async_event_logging", "fsfreeze"]
    obsolete += ["OnAppSuccessDoFsFreeze"]
    configuration = options(
        path,
        *(f"{option} = 1" for option in (*obsolete, "isanysnapshotfailed")),
        "[lsblkUser]",
        "username = somebody",
        "[Monitor]",
        "Run = True",
        "Strace = True",
        "Location = /opt/x",
    )
    assert without_warnings(configuration) == DEFAULTS
    named = [*obsolete, "isanysnapshotfailed", "username", "Run", "Strace", "Location"]
    assert len(configuration.warnings) == len(named)
    for option in named:
        assert sum(f"`{option}`" in warning for warning in configuration.warnings) == 1


@given(st.binary() | st.text().map(lambda text: text.encode(errors="surrogatepass")))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_a_configuration(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any.conf"
    path.write_bytes(content)
    configuration = read_vmbackup_configuration(path)
    assert 0.01 <= configuration.thaw_timeout_seconds <= 3600
    read_waagent_configuration(path)


LINES = st.sampled_from(
    [*FULL.splitlines(), "[Monitor]", "[DEFAULT]", "[", " ", "  more", "timeout", "=", "%(a)s"]
)
ODD_LINES = LINES | st.builds("{}{}".format, LINES, st.text(max_size=5))


@given(st.lists(ODD_LINES))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_lines_are_a_configuration(tmp_path: Path, lines: list[str]) -> None:
    path = tmp_path / "any.conf"
    path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    configuration = read_vmbackup_configuration(path)
    assert 0.01 <= configuration.thaw_timeout_seconds <= 3600
    assert all(mount and mount == mount.strip() for mount in configuration.mounts_to_skip)


def test_waagent_configuration_is_read_as_the_agent_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "waagent.conf"
    path.write_text(
        "# HttpProxy.Port=1\n"
        'HttpProxy.Host = "proxy.example"   # the proxy\n'
        "HttpProxy.Port=3128\r\n"
        "OS.OpensslPath=None\n"
        "Lib.Dir=/a\n"
        "Lib.Dir=/b=c\n"
        "Extension.LogDir=/x\n"
        "Extension.LogDir=None\n"
        "nothing\n"
    )
    assert read_waagent_configuration(path) == {
        "HttpProxy.Host": "proxy.example",
        "HttpProxy.Port": "3128",
        "Lib.Dir": "/b=c",
    }


def test_waagent_configuration_is_the_first_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = (tmp_path / "a", tmp_path / "b", tmp_path / "c")
    monkeypatch.setattr("vmsnapshot.handler.machine.configuration.WAAGENT_CONFIGURATIONS", places)
    assert read_waagent_configuration() == {}
    places[2].write_text("Lib.Dir=/c\n")
    assert read_waagent_configuration() == {"Lib.Dir": "/c"}
    places[1].write_text("Lib.Dir=/b\n")
    assert read_waagent_configuration() == {"Lib.Dir": "/b"}


def test_waagent_configuration_that_cannot_be_read_is_empty(tmp_path: Path) -> None:
    assert read_waagent_configuration(tmp_path) == {}


def test_workload_outranks_the_scripts(
    root: None,  # noqa: ARG001 (requested for its effect)
    tmp_path: Path,
) -> None:
    workload, scripts = tmp_path / "workload.conf", tmp_path / "scripts.json"
    assert read_applications(workload, scripts) == Applications()
    scripts.touch(0o600)
    scripts.write_text("{}")
    for text in ("[workload]\nworkload_name =\n", "[workload]\nworkload_name = something\n"):
        workload.write_text(text)
        only_scripts = read_applications(workload, scripts)
        assert (only_scripts.workload, only_scripts.scripts.path) == (None, scripts)
    workload.write_text("[workload]\nWorkload_Name = mysql\nlinux_user = root\n")
    both = read_applications(workload, scripts)
    assert both.workload is not None
    assert both.scripts.path is None
