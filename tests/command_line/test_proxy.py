"""The proxy: from the environment, or from the options, which win."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.command_line.conftest import Command
from tests.support.fake_native import SIGNATURE, FakeNative, sas_uri
from vmsnapshot.errors import ArgumentsError
from vmsnapshot.proxy import Proxy, proxy_for, proxy_from_environment, read_proxy

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
    assert proxy_from_environment(["http://acct.blob.example/a"]) == "plain:3128"


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
    assert command("snapshot", "--blob", sas_uri(), "--proxy", f"http://u:{SIGNATURE}@p:1") == 0
    assert "proxy's password" in command.err
    assert SIGNATURE not in command.err


@pytest.mark.usefixtures("proxies")
@pytest.mark.parametrize("host", ["168.63.129.16", "169.254.169.254"])
def test_azure_platform_address_is_reached_directly(host: str) -> None:
    assert proxy_from_environment([f"http://{host}/a/b?sig=x"]) is None


READABLE = [
    ("http://proxy:3128", "http://proxy:3128"),
    ("http://proxy:3128/", "http://proxy:3128"),
    ("HTTP://PROXY:3128//", "http://proxy:3128"),
    ("proxy:3128", "http://proxy:3128"),
    ("proxy", "http://proxy:80"),
    (' "http://10.0.0.1:8080" ', "http://10.0.0.1:8080"),
    ("http://[FD00::1]:8080", "http://[fd00::1]:8080"),
    ("http://user@proxy:1", "http://user@proxy:1"),
    ("user:pw@proxy:1", "http://user:pw@proxy:1"),
    # A percent sign that begins no escape stands for itself.
    ("http://user:50%off@proxy:3128", "http://user:50%25off@proxy:3128"),
    ("http://user:open%20sesame@proxy:3128", "http://user:open%20sesame@proxy:3128"),
    ("http://user:p@ss:w@proxy:3128", "http://user:p%40ss%3Aw@proxy:3128"),
    ("http://d%5Cuser:p%40ss@proxy:3128", "http://d%5Cuser:p%40ss@proxy:3128"),
    ("http://u:größe@proxy:3128", "http://u:gr%C3%B6%C3%9Fe@proxy:3128"),
    # As Python reads the byte FF of the environment or of an argument.
    ("http://u:p\udcff@proxy:3128", "http://u:p%FF@proxy:3128"),
]
UNREADABLE = [
    "",
    "socks5://u:hunter2@proxy:1080",
    "http://127.0.0.1:3128/proxy.pac",
    "http://u:hunter2@proxy:3128/x",
    "http://u:hun/ter2@proxy:3128",
    "http://proxy:3128/x@evil.example:80",
    "http://proxy:3128?x",
    "http://",
    "http://u:hunter2@",
    "http://proxy:0",
    "http://proxy:65536",
    "http://proxy:hunter2",
    "http://u:hunter2@pro xy",
    "http://[::g]:1",
    "http://::1:8080",
]


@pytest.mark.parametrize(("text", "uri"), READABLE)
def test_proxy_is_read_as_people_write_it(text: str, uri: str) -> None:
    assert read_proxy(text) == Proxy(uri)


@pytest.mark.usefixtures("compiled_engine")
@pytest.mark.parametrize("uri", [uri for _, uri in READABLE])
def test_proxy_that_was_read_is_read_by_the_engine(uri: str) -> None:
    # It looks at the proxy before the thaw timeout, which is bad too.
    program = (
        "import sys, vmsnapshot\n"
        "plan = vmsnapshot.plan(exclude=['/**'])\n"
        "try: vmsnapshot.prepare(plan, proxy=sys.argv[1], connect_timeout=0)\n"
        "except vmsnapshot.PrepareError as error: print(error.code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, uri], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.strip() == "bad-time-limit"


def test_https_proxy_is_used_in_plain_http_with_a_warning() -> None:
    assert read_proxy("https://proxy:8080").uri == "http://proxy:8080"
    assert "plain HTTP" in str(read_proxy("https://proxy").warning)
    with_password = read_proxy("https://u:hunter2@proxy")
    assert with_password.uri == "http://u:hunter2@proxy:443"
    assert "unencrypted" in str(with_password.warning)
    assert "hunter2" not in str(with_password.warning)


@pytest.mark.parametrize("text", UNREADABLE)
def test_text_that_cannot_be_an_http_proxy_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ArgumentsError) as caught:
        read_proxy(text)
    assert caught.value.code == "bad-proxy"
    assert "http://HOST:PORT" in str(caught.value.hint)
    assert not any(part in f"{caught.value}{caught.value.hint}" for part in ("hunter2", "evil", "pac "))


DIRECT = [
    ("a.blob.storage.azure.net", "*.blob.storage.azure.net,10.0.0.0/8"),
    ("a.blob.storage.azure.net", ".storage.azure.net"),
    ("a.blob.storage.azure.net", "azure.net"),
    ("A.Blob.Storage.Azure.Net", "a.blob.storage.azure.net"),
    ("a.blob.storage.azure.net", "x, A.BLOB.STORAGE.AZURE.NET ,y"),
    ("a.blob.storage.azure.net", "x a.blob.storage.azure.net"),
    ("a.blob.storage.azure.net", "a.blob.storage.azure.net:443"),
    ("a.blob.storage.azure.net", "https://a.blob.storage.azure.net/"),
    ("a.blob.storage.azure.net", "a*.blob.*.azure.net"),
    ("a.blob.storage.azure.net.", "azure.net."),
    ("a.blob.storage.azure.net", "*"),
    ("azure.net", "*.azure.net"),
    ("10.1.2.3", "10.0.0.0/8"),
    ("10.1.2.3", "10.9.9.9/8"),
    ("10.1.2.3", "10.1.2.3"),
    ("10.1.2.3", "10.1.2.3:443"),
    ("10.1.2.3", "10.0.0.0/8:443"),
    ("10.1.2.3", "10.*"),
    ("[fd00::5]", "fd00::/8"),
    ("[fd00::5]", "fd00::5"),
    ("[fd00::5]", "[fd00:0::5]"),
    ("[fd00::5]", "[fd00::5]:443"),
]
PROXIED = [
    ("a.blob.storage.azure.net", ""),
    ("a.blob.storage.azure.net", " , "),
    ("a.blob.storage.azure.net", "."),
    ("a.blob.storage.azure.net", "*."),
    ("a.blob.storage.azure.net", "ure.net"),
    ("a.blob.storage.azure.net", "b.blob.storage.azure.net,10.0.0.0/8"),
    ("a.blob.storage.azure.net", "a.blob.storage.azure.net:80"),
    ("a.blob.storage.azure.net", "[x]"),
    ("10.1.2.3", "11.0.0.0/8"),
    ("10.1.2.3", "10.1.2.3:80"),
    ("10.1.2.3", "fd00::/8"),
    ("[fd00::5]", "[fd00::5]:80"),
    ("[fd00::5]", "10.0.0.0/8"),
]


@pytest.mark.parametrize(("host", "no_proxy"), DIRECT)
def test_host_in_no_proxy_is_reached_directly(host: str, no_proxy: str) -> None:
    assert proxy_for(f"https://{host}/c/b?sig=x", {"https": "p:1", "no": no_proxy}) is None


@pytest.mark.parametrize(("host", "no_proxy"), PROXIED)
def test_host_that_is_not_in_no_proxy_uses_the_proxy(host: str, no_proxy: str) -> None:
    assert proxy_for(f"https://{host}/c/b?sig=x", {"https": "p:1", "no": no_proxy}) == "p:1"


def test_proxy_of_the_environment_that_is_spoken_to_in_plain_http_causes_a_warning(
    command: Command, native: FakeNative, proxies: pytest.MonkeyPatch
) -> None:
    proxies.setenv("https_proxy", "https://secure:3128")
    assert command("snapshot", "--blob", sas_uri()) == 0
    assert native.prepare_arguments["proxy"] == "http://secure:3128"
    assert "warning: the proxy https://secure:3128 is spoken to in plain HTTP" in command.err


@pytest.mark.parametrize("option", [[], ["--proxy", "http://u:p\udcff@proxy:3128"]])
def test_password_of_a_proxy_may_have_bytes_that_are_not_utf_8(
    command: Command, native: FakeNative, proxies: pytest.MonkeyPatch, option: list[str]
) -> None:
    proxies.setenv("https_proxy", "http://u:p\udcff@proxy:3128")
    assert command("snapshot", "--blob", sas_uri(), *option) == 0
    assert native.prepare_arguments["proxy"] == "http://u:p%FF@proxy:3128"


def test_unusable_proxy_of_the_environment_is_an_error(command: Command, proxies: pytest.MonkeyPatch) -> None:
    proxies.setenv("https_proxy", "http://127.0.0.1:3128/proxy.pac")
    assert command("snapshot", "--blob", sas_uri()) == 2
    assert "PAC file" in command.err
