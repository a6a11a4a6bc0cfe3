"""The proxy: from the environment, or from the options, which win."""

from __future__ import annotations

import pytest

from tests.command_line.conftest import Command
from tests.support.fake_native import SIGNATURE, FakeNative, sas_uri
from vmsnapshot.errors import ArgumentsError
from vmsnapshot.proxy import proxy_from_environment

LOCAL = [
    "http://127.0.0.1:10000/a/b?sig=x",
    "https://localhost/a",
    "https://[::1]:10000/a",
    "https://a.localhost/b",
]


@pytest.fixture
def proxies(native: FakeNative, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    assert native.calls == []
    monkeypatch.setenv("https_proxy", "http://secure:3128")
    monkeypatch.setenv("http_proxy", "plain:3128")
    return monkeypatch


@pytest.mark.usefixtures("proxies")
def test_proxy_is_chosen_by_the_scheme_of_the_blob() -> None:
    assert proxy_from_environment([sas_uri()]) == "http://secure:3128"
    assert proxy_from_environment(["http://acct.blob.example/a"]) == "http://plain:3128"


def test_no_proxy_is_honoured(proxies: pytest.MonkeyPatch) -> None:
    proxies.setenv("no_proxy", "other.example,.blob.example")
    assert proxy_from_environment([sas_uri()]) is None


@pytest.mark.usefixtures("proxies")
@pytest.mark.parametrize("blob", LOCAL)
def test_loopback_is_reached_directly(blob: str) -> None:
    assert proxy_from_environment([blob]) is None


@pytest.mark.usefixtures("proxies")
def test_different_proxies_for_different_blobs_are_refused() -> None:
    with pytest.raises(ArgumentsError) as caught:
        proxy_from_environment([sas_uri(), LOCAL[0]])
    assert caught.value.code == "proxy-ambiguous"


@pytest.mark.usefixtures("proxies")
def test_malformed_uri_is_left_to_the_engine() -> None:
    assert proxy_from_environment(["https://[half", "no-uri"]) is None


@pytest.mark.usefixtures("proxies")
@pytest.mark.parametrize(
    ("options", "proxy"),
    [
        ([], "http://secure:3128"),
        (["--no-proxy"], None),
        (["--proxy", "http://other:1"], "http://other:1"),
    ],
)
def test_options_win_over_the_environment(
    command: Command, native: FakeNative, options: list[str], proxy: str | None
) -> None:
    assert command("snapshot", "--blob", sas_uri(), *options) == 0
    assert native.prepare_arguments["proxy"] == proxy


def test_proxy_password_on_the_command_line_causes_a_warning(command: Command) -> None:
    assert command("snapshot", "--blob", sas_uri(), "--proxy", f"http://u:{SIGNATURE}@p") == 0
    assert "proxy's password" in command.err
    assert SIGNATURE not in command.err


@pytest.mark.usefixtures("proxies")
@pytest.mark.parametrize("host", ["168.63.129.16", "169.254.169.254"])
def test_azure_platform_address_is_reached_directly(host: str) -> None:
    assert proxy_from_environment([f"http://{host}/a/b?sig=x"]) is None
