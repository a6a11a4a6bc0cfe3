"""Tests of the extension, called by the real agent.

``tests/agent/fetch`` unpacks Debian's package ``waagent`` (2.7.3) and never installs it. A test's
VM consists of

    a sandbox       its own namespaces, in which only the test's filesystems can be frozen
                    (`tests.support.isolation`)
    a WireServer    Azure's host at its real addresses: goal states, certificates, packages, status
                    reports, and the backup host service (`tests.support.wire_server`)
    an agent        the agent's own modules, run by the system's Python, one round of its loop at a
                    time, so that a test knows when to check (`agent.Agent`, `agent_process`)
    Azurite         the blob service, forwarded into the sandbox

The test changes the goal state, lets the agent do a round, and checks its report, the blobs and the
filesystems.

``test_agent`` tests this set-up itself, with an extension of a few lines of shell.
"""
