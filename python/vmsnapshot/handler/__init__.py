"""The extension handler: what the Azure Linux agent calls, and what Azure Backup reads.

One command of the agent is one process. `commands` answers it within milliseconds. The backup job itself is
done by `worker` in a process of its own, with the engine for everything between the freeze and the thaw.

From the top to the bottom; what is above imports what is below, never the other way round:

    __main__        which process this is
    commands        the agent's five commands: install, enable, update, disable, uninstall
    workers         starts and ends the processes that do jobs, and mends what a killed one left
    worker          one backup job, from the settings to the final status
    polling         restore points that the host asks for, without the agent
    service         the polling service as a systemd unit or as a process
    context         where a process of the handler runs: its files, its log, its turn
    freeze          one freeze with its calls, and the lock that is shared with other extensions
    network         the host, the blobs, the proxies: what is sent and received outside the window
    agent           the agent's files: environment, sequence number, status file, events
    report          what Azure Backup is told: each disk, the outcome, the two status documents
    machine         what is known of this VM: configuration, disks, sizes, facts, processes
    settings        what Azure Backup asks for, as types that cannot be wrong
    codes           the numbers by which Azure Backup knows what a job came to
    log, files      lines for people; small files that are replaced whole
    secret          texts that must not be printed

pyproject.toml holds these layers too, and `make check` fails on an import against them. Nothing here runs
inside the window: the engine does not call back.
"""
