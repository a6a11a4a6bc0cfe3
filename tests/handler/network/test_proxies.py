"""Which proxy the handler uses for a blob."""

from __future__ import annotations

import pytest

from vmsnapshot.handler.network.proxies import Proxies
from vmsnapshot.handler.secret import SasUri

BLOB = SasUri("https://acct.blob.example/vhds/os.vhd?sv=2018-03-28&sig=c2VjcmV0")
PLAIN_BLOB = SasUri("http://acct.blob.example/vhds/os.vhd?sv=2018-03-28&sig=c2VjcmV0")
WAAGENT = {"HttpProxy.Host": "proxy.corp.example", "HttpProxy.Port": "3128"}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


def test_without_any_setting_there_is_no_proxy() -> None:
    proxies = Proxies({})
    assert proxies.for_uri(BLOB) is None
    assert proxies.warnings == ()


def test_waagent_conf_wins_over_the_environment(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("https_proxy", "http://other.example:8080")
    proxies = Proxies(WAAGENT)
    assert proxies.for_uri(BLOB) == "http://proxy.corp.example:3128"
    assert proxies.for_uri(PLAIN_BLOB) == "http://proxy.corp.example:3128"
    assert proxies.warnings == ()


def test_environment_goes_by_the_blobs_scheme(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("https_proxy", "http://secure.example:8080")
    environment.setenv("http_proxy", "http://plain.example:8080")
    proxies = Proxies({})
    assert proxies.for_uri(BLOB) == "http://secure.example:8080"
    assert proxies.for_uri(PLAIN_BLOB) == "http://plain.example:8080"


def test_lower_case_wins_over_upper_case(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("HTTPS_PROXY", "http://upper.example:8080")
    assert Proxies({}).for_uri(BLOB) == "http://upper.example:8080"
    environment.setenv("https_proxy", "http://lower.example:8080")
    assert Proxies({}).for_uri(BLOB) == "http://lower.example:8080"


@pytest.mark.parametrize("configuration", [WAAGENT, {}])
def test_no_proxy_is_honoured_for_both(
    environment: pytest.MonkeyPatch, configuration: dict[str, str]
) -> None:
    environment.setenv("https_proxy", "http://other.example:8080")
    environment.setenv("no_proxy", "metadata.example,.blob.example")
    assert Proxies(configuration).for_uri(BLOB) is None
    elsewhere = SasUri("https://acct.elsewhere.example/vhds/os.vhd?sig=c2VjcmV0")
    assert Proxies(configuration).for_uri(elsewhere) is not None


@pytest.mark.parametrize(
    "host", ["168.63.129.16", "169.254.169.254:80", "127.0.0.1:10000", "localhost", "[::1]:1"]
)
def test_platform_and_loopback_are_never_reached_through_a_proxy(host: str) -> None:
    assert Proxies(WAAGENT).for_uri(SasUri(f"http://{host}/a/b?sig=c2VjcmV0")) is None


@pytest.mark.parametrize("port", [{}, {"HttpProxy.Port": "None"}, {"HttpProxy.Port": ""}])
def test_host_without_a_port_is_no_proxy_and_warned_of(
    environment: pytest.MonkeyPatch, port: dict[str, str]
) -> None:
    environment.setenv("https_proxy", "http://other.example:8080")
    proxies = Proxies({"HttpProxy.Host": "proxy.corp.example", **port})
    assert proxies.for_uri(BLOB) is None
    assert "HttpProxy.Port" in proxies.warnings[0]


@pytest.mark.parametrize("port", ["http", "0", "65536", "-1", "\u0663"])
def test_port_that_is_none_is_no_proxy_and_warned_of(port: str) -> None:
    proxies = Proxies({"HttpProxy.Host": "proxy.corp.example", "HttpProxy.Port": port})
    assert proxies.for_uri(BLOB) is None
    assert len(proxies.warnings) == 1


def test_the_agents_none_means_unset(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("https_proxy", "http://other.example:8080")
    proxies = Proxies({"HttpProxy.Host": "None", "HttpProxy.Port": "None"})
    assert proxies.for_uri(BLOB) == "http://other.example:8080"
    assert proxies.warnings == ()


def test_ipv6_host_is_put_in_brackets() -> None:
    proxies = Proxies({"HttpProxy.Host": "2001:db8::1", "HttpProxy.Port": "3128"})
    assert proxies.for_uri(BLOB) == "http://[2001:db8::1]:3128"


@pytest.mark.parametrize(
    "text",
    [
        "https://proxy.example:8080",
        "proxy.example:8080",
        "HTTP://Proxy.example:8080/",
        "'proxy.example:8080'",
    ],
)
def test_proxy_of_the_environment_is_read_as_people_write_it(
    environment: pytest.MonkeyPatch, text: str
) -> None:
    environment.setenv("https_proxy", text)
    proxies = Proxies({})
    assert (proxies.for_uri(BLOB), proxies.defect_for(BLOB)) == ("http://proxy.example:8080", None)
    assert len(proxies.warnings) == text.startswith("https:")


def test_variable_that_cannot_be_a_proxy_is_a_defect_of_the_blobs_that_need_it(
    environment: pytest.MonkeyPatch,
) -> None:
    environment.setenv("https_proxy", "http://user:hunter2@proxy.example:8080/proxy.pac")
    proxies = Proxies({})
    # The report is sent directly, so that the cause arrives.
    assert proxies.for_uri(BLOB) is None
    defect = proxies.defect_for(BLOB)
    assert defect is not None
    assert "PAC" in defect
    assert "https_proxy" in defect
    assert "hunter2" not in str((defect, proxies.warnings))
    assert proxies.defect_for(PLAIN_BLOB) is None
    environment.setenv("no_proxy", "*.blob.example")
    assert Proxies({}).defect_for(BLOB) is None
    environment.delenv("no_proxy")
    assert Proxies(WAAGENT).defect_for(BLOB) is None


def test_password_of_the_environment_that_is_not_utf_8_is_kept_byte_by_byte(
    environment: pytest.MonkeyPatch,
) -> None:
    # As Python reads the byte FF.
    environment.setenv("https_proxy", "http://u:p\udcff@proxy.example:3128")
    proxies = Proxies({})
    assert proxies.for_uri(BLOB) == "http://u:p%FF@proxy.example:3128"
    assert (proxies.defect_for(BLOB), proxies.warnings) == (None, ())


def test_all_blobs_of_a_proxy_leave_it_out_together(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("https_proxy", "http://proxy.example:3128")
    proxies = Proxies({})
    proxies.optional_for(BLOB).leave_out()
    other = SasUri("https://other.blob.example/status?sig=c2VjcmV0")
    assert proxies.optional_for(other).uri is None
    # The engine decides for itself.
    assert proxies.for_uri(BLOB) == "http://proxy.example:3128"


def test_host_of_waagent_conf_that_is_none_is_no_proxy_and_warned_of() -> None:
    proxies = Proxies({"HttpProxy.Host": "http://proxy/x", "HttpProxy.Port": "3128"})
    assert (proxies.for_uri(BLOB), len(proxies.warnings)) == (None, 1)
