"""Properties of the settings' parser: it understands its input or refuses it with a code, and never crashes.

Whatever is in the file, `parse` returns settings or raises a `SettingsError`. No message or warning repeats
the input. Scrubbing removes the protected settings and nothing else.
"""

from __future__ import annotations

import base64
import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from vmsnapshot.handler.codes import Code
from vmsnapshot.handler.secret import SasUri
from vmsnapshot.handler.settings.envelope import Envelope, read_envelope, scrub, without_protected_settings
from vmsnapshot.handler.settings.job import quick_job
from vmsnapshot.handler.settings.mode import choose_mode
from vmsnapshot.handler.settings.parser import parse
from vmsnapshot.handler.settings.wire import (
    OS_DISK_LUN,
    Job,
    Settings,
    SettingsError,
    SnapshotMode,
    instant_of_ticks,
)

MARK = "c2VjcmV0"

# This includes lone surrogates, NaN, infinities and numbers of hundreds of digits, all possible in JSON.
TEXTS = st.text(st.characters(exclude_categories=[])) | st.sampled_from(["", " ", "true", "false", "0", "é"])
NUMBERS = st.integers() | st.integers(10**400, 10**401) | st.floats()
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS
ANYTHING = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=8)


def objects(**known: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with some of the known keys, each with a likely or an arbitrary value."""
    return st.fixed_dictionaries({}, optional={key: value | ANYTHING for key, value in known.items()})


def encoded(values: st.SearchStrategy[Any]) -> st.SearchStrategy[str]:
    return values.map(lambda value: base64.b64encode(json.dumps(value).encode()).decode())


PAIRS = st.lists(objects(Key=TEXTS | st.just("isSnapshotTtlEnabled"), Value=SCALARS))
LUNS = st.lists(st.integers(0, 63))
DISKS = objects(
    dataDiskLunList=LUNS,
    isOSDiskIncluded=st.booleans(),
    isAnyDiskExcluded=st.booleans(),
    isAnyWADiskIncluded=st.booleans(),
    instantAccessDurationMinutes=st.integers(),
)
REQUESTS = objects(
    backupMetadata=PAIRS, snapshotTaskToken=TEXTS, includedDisks=DISKS, dynamicConfigsFromCRP=PAIRS
)
CUSTOM = objects(
    takeSnapshotFrom=st.sampled_from([mode.value for mode in SnapshotMode]),
    isManagedVm=st.booleans(),
    backupTaskId=TEXTS,
    waDiskLunList=LUNS,
    backupRetryCount=st.integers(),
)
TICKS = st.sampled_from(["638827848000000000", "6.36458E+17", 6.36458e17, 638827848000000000])
BASE64 = st.text(alphabet="ABab01+/=\r\n '\"-é") | st.binary().map(lambda raw: base64.b64encode(raw).decode())
PUBLIC = objects(
    commandToExecute=st.sampled_from(["snapshot", "install", "other"]),
    taskId=TEXTS,
    commandStartTimeUTCTicks=TICKS,
    vmType=st.just("Microsoft.Compute/virtualMachines"),
    objectStr=encoded(REQUESTS) | BASE64,
    customSettings=CUSTOM.map(json.dumps) | TEXTS,
    statusBlobUri=TEXTS,
)
PROTECTED = objects(
    objectStr=encoded(objects(blobSASUri=st.lists(TEXTS))) | BASE64,
    customSettings=CUSTOM.map(json.dumps),
    snapshotTaskToken=TEXTS,
    statusBlobUri=TEXTS,
    logsBlobUri=TEXTS,
)
# Nearly all of these are usable, while those of PUBLIC rarely get past the first field.
USABLE = st.fixed_dictionaries(
    {
        "commandToExecute": st.just("snapshot"),
        "objectStr": encoded(
            st.fixed_dictionaries(
                {"backupMetadata": PAIRS},
                optional={"includedDisks": DISKS, "dynamicConfigsFromCRP": PAIRS | ANYTHING},
            )
        ),
    },
    optional={"customSettings": CUSTOM.map(json.dumps), "commandStartTimeUTCTicks": TICKS | ANYTHING},
)


def outcome(public: dict[str, Any], protected: dict[str, Any]) -> Settings | SettingsError:
    try:
        return parse(Envelope(public), protected)
    except SettingsError as error:
        return error


@given(PUBLIC | USABLE, PROTECTED)
def test_any_settings_are_understood_or_refused_with_a_code(
    public: dict[str, Any], protected: dict[str, Any]
) -> None:
    result = outcome(public, protected)
    assert quick_job(Envelope(public)).task_id == result.job.task_id
    if isinstance(result, SettingsError):
        assert result.code in (Code.ERROR, Code.PARAMETERS, Code.CERTIFICATE_NOT_FOUND)
        return
    # Everything that goes into a status, a file or a request to the host can be encoded.
    forwarded = [*result.backup_metadata, *result.dynamic_configs.pairs(), result.job.start_ticks]
    json.dumps(forwarded, allow_nan=False)
    for text in (result.job.task_id, result.host_task_id, result.snapshot_task_token.expose()):
        (text or "").encode()
    assert all(type(lun) is int for lun in (*result.disks.luns, *result.custom.write_accelerated_luns))
    assert result.start is None or result.start.tzinfo is not None
    try:
        choose_mode(result, None)
    except SettingsError as error:
        assert error.code is Code.INVALID_LUN_LIST


@given(st.binary() | ANYTHING.map(json.dumps).map(str.encode))
def test_any_file_gives_an_envelope_and_a_job(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "7.settings"
        path.write_bytes(content)
        envelope = read_envelope(path)
        assert envelope.public or envelope.problem or envelope.protected_text
        assert quick_job(envelope) == Job()
        assert scrub(path)
        assert path.read_bytes() == content


@given(PUBLIC, PUBLIC)
def test_no_message_and_no_warning_repeats_what_was_read(
    public: dict[str, Any], protected: dict[str, Any]
) -> None:
    def marked(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: marked(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [marked(inner) for inner in value]
        return MARK + value if isinstance(value, str) else value

    for first, second in ((marked(public), protected), (public, marked(protected))):
        result = outcome(first, second)
        if isinstance(result, SettingsError):
            assert MARK not in f"{result} {result!r}"
        else:
            assert not any(MARK in text for text in (*result.warnings, str(result.refusal)))


@given(LUNS, st.booleans(), st.lists(TEXTS.filter(lambda text: not _has_surrogate(text))))
def test_what_is_well_formed_is_understood_as_it_was_meant(
    luns: list[int], has_os_disk: bool, uris: list[str]
) -> None:
    request = {
        "backupMetadata": [],
        "includedDisks": {"dataDiskLunList": luns, "isOSDiskIncluded": has_os_disk},
    }
    encode = base64.b64encode
    settings = parse(
        Envelope(
            {
                "commandToExecute": "snapshot",
                "objectStr": encode(json.dumps(request).encode()).decode(),
            }
        ),
        {"objectStr": encode(json.dumps({"blobSASUri": uris}).encode()).decode()},
    )
    assert settings.disks.luns == (*luns, *([OS_DISK_LUN] if has_os_disk else []))
    assert settings.blobs == tuple(SasUri(uri) for uri in uris)


@given(ANYTHING)
def test_ticks_of_any_kind_are_an_instant_or_none(ticks: Any) -> None:
    instant = instant_of_ticks(ticks)
    assert instant is None or isinstance(ticks, (int, str))


@given(ANYTHING, ANYTHING, st.none() | TEXTS, st.booleans())
def test_scrubbing_takes_the_protected_settings_and_keeps_everything_else(
    public: Any, other: Any, protected: str | None, is_pretty: bool
) -> None:
    kept = {"publicSettings": public, "protectedSettingsCertThumbprint": "AB", "other": other}
    before = {
        "runtimeSettings": [{"handlerSettings": {**kept, "protectedSettings": protected}, "n": 1}],
        "other": other,
    }
    text = without_protected_settings(json.dumps(before, indent=2 if is_pretty else None))
    after = {"runtimeSettings": [{"handlerSettings": kept, "n": 1}], "other": other}
    assert text is not None
    # Compared as texts, since NaN is not equal to itself.
    assert json.dumps(json.loads(text)) == json.dumps(after)
    assert without_protected_settings(text) is None


@given(st.text())
def test_scrubbing_of_any_text_gives_json_or_nothing(text: str) -> None:
    scrubbed = without_protected_settings(text)
    assert scrubbed is None or isinstance(json.loads(scrubbed), dict)


def _has_surrogate(text: str) -> bool:
    return any(0xD800 <= ord(character) < 0xE000 for character in text)
