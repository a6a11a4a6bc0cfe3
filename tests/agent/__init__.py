"""The extension, called by the real agent.

``tests/agent/fetch`` unpacks Debian's package ``waagent`` (2.7.3), and never installs it. A test's VM is

    a sandbox       namespaces of its own, in which only the test's filesystems can be frozen
                    (`tests.support.isolation`)
    a WireServer    Azure's host at its real addresses: goal states, certificates, packages, status
                    reports, and the backup host service (`tests.support.wire_server`)
    an agent        the agent's own modules, run by the system's Python, one round of its loop at a
                    time, so that a test knows when to look (`agent.Agent`, `agent_process`)
    Azurite         the blob service, forwarded into the sandbox

The test changes the goal state, has the agent do a round, and looks at what it reported, at the blobs and
at the filesystems.

``test_agent`` is about the set-up itself, with an extension of a few lines of shell.
"""
