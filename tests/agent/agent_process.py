"""Azure's Linux agent, one round of its loop at a time. The system's Python runs it inside a sandbox.

The agent's own code (`azurelinuxagent`, found through PYTHONPATH) does everything that concerns an
extension: the wire protocol, goal states, certificates, download, unpacking, settings, commands,
status. This script omits the rest of its ``run``: threads, the firewall, the pause between two
rounds. It polls a command every 0.1 s instead of every second, which would take most of the tests'
time.

It prints ``ready``. Then it does one round for every line on standard input and prints ``done``. At
the end of the input it ends without notice to any extension, as an agent that is stopped does.
"""
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
import types

from azurelinuxagent.agent import Agent
from azurelinuxagent.common import version
from azurelinuxagent.common.event import initialize_event_logger_vminfo_common_parameters
from azurelinuxagent.common.protocol.util import get_protocol_util
from azurelinuxagent.common.utils import extensionprocessutil
from azurelinuxagent.ga.exthandlers import get_exthandlers_handler, migrate_handler_state
from azurelinuxagent.ga.remoteaccess import get_remote_access_handler
from azurelinuxagent.ga.update import get_update_handler

WIRE_SERVER = "168.63.129.16"

# The agent counts its sleeps as seconds, so a command's limit shrinks to a tenth as well: 30 s for enable.
COMMAND_SECOND = 0.1


def main() -> None:
    """Starts as ``waagent -run-exthandlers`` does, and does rounds until standard input ends."""
    # Extensions inherit the environment, and on a VM these variables are not set.
    del os.environ["PYTHONPATH"]
    answers = os.fdopen(os.dup(1), "w")
    # The agent logs to standard output.
    os.dup2(2, 1)
    version.set_daemon_version(version.AGENT_VERSION)
    pause = time.sleep
    extensionprocessutil.time = types.SimpleNamespace(sleep=lambda seconds: pause(seconds * COMMAND_SECOND))
    Agent(verbose=False, conf_file_path="/etc/waagent.conf")
    threading.current_thread().name = "ExtHandler"
    protocol_util = get_protocol_util()
    # The answer of DHCP on Azure.
    protocol_util.dhcp_handler.endpoint = WIRE_SERVER
    protocol = protocol_util.get_protocol()
    protocol.update_goal_state()
    initialize_event_logger_vminfo_common_parameters(protocol)
    extensions = get_exthandlers_handler(protocol)
    migrate_handler_state()
    updates = get_update_handler()
    updates._ensure_readonly_files()
    updates._ensure_cgroups_initialized()
    updates._ensure_extension_telemetry_state_configured_properly(protocol)
    users = get_remote_access_handler(protocol)
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        updates._process_goal_state(extensions, users)
        print("done", file=answers, flush=True)


if __name__ == "__main__":
    try:
        main()
    except Exception:
        traceback.print_exc()
        sys.exit(1)
