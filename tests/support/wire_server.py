"""Azure's host as the agent and the handler see it: WireServer, HostGAPlugin, metadata, backup host.

It listens in a `Sandbox` at the real address and ports, and runs in threads of the test. The test
sets the goal state (`WireServer.request`), the published versions of the extension (`publish`) and
the answers of the backup host. Afterwards it reads the agent's reports and the requests to the
backup host.

It implements only what agent 2.7.3 needs to process goal states. Keys, certificates and ciphers
come from openssl.
"""

from __future__ import annotations

import base64
import http.server
import json
import socket
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Callable
from xml.sax.saxutils import escape

from tests.support.isolation import Sandbox

ADDRESS = "168.63.129.16"
HOST_PLUGIN_PORT = 32526
METADATA_ADDRESS = "169.254.169.254"

EXTENSION = "Microsoft.Azure.RecoveryServices.VMSnapshotLinux"

PRE_SNAPSHOT = "/metadata/recsvc/snapshot/presnapshot"
DO_SNAPSHOT = "/metadata/recsvc/snapshot/dosnapshot"

_BASE = f"http://{ADDRESS}"


@dataclass(frozen=True)
class RequestedSettings:
    """The settings of one sequence number. The protected ones are encrypted for the VM's certificate."""

    sequence_number: int
    public: Mapping[str, Any]
    protected: Mapping[str, Any] | None = None
    cipher: str = "des3"
    """The content cipher by its name in openssl: ``des3``, or ``aes-256-cbc`` as on a VM in FIPS mode."""


@dataclass(frozen=True)
class Requested:
    """The request in a goal state."""

    version: str
    state: str = "enabled"
    """``enabled``, ``disabled`` or ``uninstall``."""
    settings: RequestedSettings | None = None


@dataclass(frozen=True)
class BackupAnswer:
    """The answer of the backup host to one path."""

    status: int
    body: Mapping[str, Any] | None = None
    wait_for: threading.Event | None = None
    """The answer waits until this is set, at most 20 s."""


@dataclass(frozen=True)
class BackupRequest:
    """A request that the backup host received."""

    path: str
    headers: Mapping[str, str]
    """Names in lower case."""
    body: Mapping[str, Any]


@dataclass(frozen=True)
class Report:
    """A report of the agent: the body of one status blob."""

    document: Mapping[str, Any]
    at_ns: int
    """When it was received (CLOCK_MONOTONIC)."""

    @property
    def handler(self) -> Mapping[str, Any] | None:
        """The status of our handler, or None if the agent does not report one."""
        for handler in self.document["aggregateStatus"]["handlerAggregateStatus"]:
            if handler["handlerName"] == EXTENSION:
                assert isinstance(handler, dict)
                return handler
        return None


class WireServer:
    """The server, until `close`. ``role_guid`` identifies the VM. Its directory stores keys and packages."""

    def __init__(self, sandbox: Sandbox, directory: Path, *, role_guid: str) -> None:
        self.directory = directory
        self.role_guid = role_guid
        self.incarnation = 0
        self.requested: Requested | None = None
        self.packages: dict[str, Path] = {}
        self.reports: list[Report] = []
        self.backup_requests: list[BackupRequest] = []
        # The host answers so if no backup host service runs.
        self.backup_answers = {PRE_SNAPSHOT: BackupAnswer(404), DO_SNAPSHOT: BackupAnswer(404)}
        self.unknown_requests: list[str] = []
        self._certificate, self._key = directory / "tenant.pem", directory / "tenant.key"
        self._make_tenant_certificate()
        self._runtime_settings = ""
        places = ((ADDRESS, 80), (ADDRESS, HOST_PLUGIN_PORT), (METADATA_ADDRESS, 80))
        self._servers = [self._serve(sandbox, *place) for place in places]

    @property
    def thumbprint(self) -> str:
        """The tenant certificate's thumbprint, after which the agent names its files."""
        line = _openssl("x509", "-in", self._certificate, "-noout", "-fingerprint", "-sha1").decode()
        return line.strip().partition("=")[2].replace(":", "")

    def publish(self, version: str, package: Path) -> None:
        """Makes a version of the extension available for download."""
        self.packages[version] = package

    def request(self, requested: Requested | None) -> None:
        """Makes a new goal state. ``None`` removes the extension from it."""
        self.requested = requested
        self._runtime_settings = (
            self._encrypted(requested.settings) if requested and requested.settings else ""
        )
        self.incarnation += 1

    def close(self) -> None:
        """Stops answering."""
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def __enter__(self) -> WireServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def answer(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
        """Answers one request; called by the server's threads."""
        parts = urllib.parse.urlsplit(target)
        what = urllib.parse.parse_qs(parts.query).get("comp", [parts.path])[0]
        if parts.path in self.backup_answers:
            return self._answer_backup(parts.path, headers, body)
        if method == "GET":
            text = self._document(what, headers)
            if text is not None:
                return 200, text if isinstance(text, bytes) else text.encode()
        elif (method, what) == ("PUT", "/status"):
            # The HostGAPlugin wraps the content of the blob.
            report = json.loads(base64.b64decode(json.loads(body)["content"]))
            self.reports.append(Report(report, time.monotonic_ns()))
            return 201, b""
        elif what in ("telemetrydata", "health", "/HealthService"):
            return 200, b""
        self.unknown_requests.append(f"{method} {target}")
        return 404, b""

    def _document(self, what: str, headers: Mapping[str, str]) -> str | bytes | None:
        documents: dict[str, Callable[[], str]] = {
            "versions": self._versions,
            "goalstate": self._goal_state,
            "/hosting": self._hosting_environment,
            "/shared": lambda: (
                f'<?xml version="1.0"?><SharedConfig version="1.0.0.0">{self._role()}</SharedConfig>'
            ),
            "/extensions": self._extensions,
            "/manifest": self._manifest,
            # The HostGAPlugin's.
            "/versions": lambda: '["2015-09-01"]',
            # The instance metadata service's.
            "/metadata/instance/compute": lambda: '{"location": "test"}',
        }
        if what == "/certificates":
            return self._certificates(headers["x-ms-guest-agent-public-x509-cert"])
        if what.startswith("/package/"):
            return self.packages[what.rpartition("/")[2]].read_bytes()
        return documents[what]() if what in documents else None

    def _answer_backup(self, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
        self.backup_requests.append(BackupRequest(path, headers, json.loads(body)))
        answer = self.backup_answers[path]
        if answer.wait_for is not None:
            answer.wait_for.wait(timeout=20.0)
        return answer.status, b"" if answer.body is None else json.dumps(answer.body).encode()

    def _versions(self) -> str:
        return (
            '<?xml version="1.0"?><Versions><Preferred><Version>2012-11-30</Version></Preferred>'
            "<Supported><Version>2012-11-30</Version></Supported></Versions>"
        )

    def _goal_state(self) -> str:
        return (
            '<?xml version="1.0"?><GoalState><Version>2012-11-30</Version>'
            f"<Incarnation>{self.incarnation}</Incarnation><Machine><ExpectedState>Started</ExpectedState></Machine>"
            "<Container><ContainerId>4a4a3b1c-0000-4000-8000-000000000001</ContainerId><RoleInstanceList>"
            "<RoleInstance><InstanceId>test.role_0</InstanceId><State>Started</State><Configuration>"
            f"<HostingEnvironmentConfig>{_BASE}/hosting</HostingEnvironmentConfig>"
            f"<SharedConfig>{_BASE}/shared</SharedConfig>"
            f"<ExtensionsConfig>{_BASE}/extensions</ExtensionsConfig>"
            f"<Certificates>{_BASE}/certificates</Certificates>"
            f"<ConfigName>test.{self.incarnation}.role.0.xml</ConfigName>"
            "</Configuration></RoleInstance></RoleInstanceList></Container></GoalState>"
        )

    def _role(self) -> str:
        return f'<Role guid="{{{self.role_guid}}}" name="role" settleTimeSeconds="10" />'

    def _hosting_environment(self) -> str:
        return (
            '<?xml version="1.0"?><HostingEnvironmentConfig version="1.0.0.0">'
            f'<Incarnation number="{self.incarnation}" instance="vm" guid="{{{self.role_guid}}}" />'
            f'{self._role()}<Deployment name="test" guid="{{{self.role_guid}}}" incarnation="1" />'
            "</HostingEnvironmentConfig>"
        )

    def _certificates(self, transport_certificate: str) -> str:
        """Returns the tenant's key and certificate as a PFX, encrypted for the agent's certificate."""
        transport = self.directory / "transport.pem"
        transport.write_text(
            f"-----BEGIN CERTIFICATE-----\n{transport_certificate}\n-----END CERTIFICATE-----\n"
        )
        pfx = _openssl(
            "pkcs12", "-export", "-in", self._certificate, "-inkey", self._key, "-passout", "pass:"
        )
        enveloped = _encrypt(pfx, "des3", transport)
        return (
            '<?xml version="1.0"?><CertificateFile><Version>2012-11-30</Version>'
            f"<Incarnation>{self.incarnation}</Incarnation><Format>Pkcs7BlobWithPfxContents</Format>"
            f"<Data>{base64.encodebytes(enveloped).decode()}</Data></CertificateFile>"
        )

    def _extensions(self) -> str:
        plugin = settings = ""
        if self.requested is not None:
            names = f'name="{EXTENSION}" version="{self.requested.version}"'
            plugin = (
                f'<Plugin {names} location="{_BASE}/manifest" state="{self.requested.state}" '
                'runAsStartupTask="false" isJson="true" useExactVersion="true" />'
            )
            if self.requested.settings is not None:
                settings = (
                    f'<Plugin {names}><RuntimeSettings seqNo="{self.requested.settings.sequence_number}">'
                    f"{escape(self._runtime_settings)}</RuntimeSettings></Plugin>"
                )
        return (
            '<?xml version="1.0"?><Extensions version="1.0.0.0"><GuestAgentExtension />'
            f"<Plugins>{plugin}</Plugins><PluginSettings>{settings}</PluginSettings>"
            f'<StatusUploadBlob statusBlobType="BlockBlob">{_BASE}/status-blob</StatusUploadBlob>'
            "</Extensions>"
        )

    def _manifest(self) -> str:
        plugins = "".join(
            f"<Plugin><Version>{version}</Version><Uris><Uri>{_BASE}/package/{version}</Uri></Uris></Plugin>"
            for version in self.packages
        )
        return (
            '<?xml version="1.0"?><PluginVersionManifest>'
            f"<Plugins>{plugins}</Plugins></PluginVersionManifest>"
        )

    def _encrypted(self, settings: RequestedSettings) -> str:
        handler: dict[str, Any] = {"publicSettings": settings.public}
        if settings.protected is not None:
            plain = json.dumps(settings.protected).encode()
            enveloped = _encrypt(plain, settings.cipher, self._certificate)
            handler["protectedSettings"] = base64.b64encode(enveloped).decode()
            handler["protectedSettingsCertThumbprint"] = self.thumbprint
        return json.dumps({"runtimeSettings": [{"handlerSettings": handler}]})

    def _make_tenant_certificate(self) -> None:
        subject = "/DC=Windows Azure CRP Certificate Generator"
        words = ("-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", subject)
        _openssl("req", "-x509", *words, "-keyout", self._key, "-out", self._certificate)

    def _serve(self, sandbox: Sandbox, address: str, port: int) -> http.server.ThreadingHTTPServer:
        server = _Server(self, sandbox.listen(address, port))
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, wire_server: WireServer, listener: socket.socket) -> None:
        super().__init__(("", 0), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.wire_server = wire_server


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        """Answers and closes the connection."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        status, answer = self.server.wire_server.answer(self.command, self.path, headers, body)
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_PUT = do_GET

    def log_message(self, *_: object) -> None:
        """Discards the log line."""


def _encrypt(plain: bytes, cipher: str, certificate: Path) -> bytes:
    return _openssl("cms", "-encrypt", "-binary", "-outform", "DER", f"-{cipher}", certificate, data=plain)


def _openssl(*words: str | Path, data: bytes = b"") -> bytes:
    finished = subprocess.run(
        ["openssl", *map(str, words)], input=data, capture_output=True, timeout=20.0, check=False
    )
    assert finished.returncode == 0, finished.stderr.decode(errors="replace")
    return finished.stdout
