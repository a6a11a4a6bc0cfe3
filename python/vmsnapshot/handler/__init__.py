"""The extension handler: what the Azure Linux agent calls, and what Azure Backup reads.

One command of the agent is one process. `commands` returns within milliseconds. `worker` does the backup job
in a process of its own, and the engine does everything between the freeze and the thaw.

From the top to the bottom. A module imports only modules below it:

    __main__        which process this is
    commands        the agent's five commands: install, enable, update, disable, uninstall
    workers         starts and ends the processes that do jobs, and mends what a killed one left
    worker          one backup job, from the settings to the final status
    polling         restore points that the host asks for, without the agent
    service         the polling service as a systemd unit or as a process
    context         where a process of the handler runs: its files, its log, its turn
    freeze          one freeze with its calls, and the lock that is shared with other extensions
    network         sends and receives everything outside the window: host, blobs, proxies
    agent           the agent's files: environment, sequence number, status file, events
    report          what Azure Backup receives: each disk, the outcome, the two status documents
    machine         what is known about this VM: configuration, disks, sizes, facts, processes
    settings        what Azure Backup asks for, as types that are always valid
    codes           the numbers that Azure Backup uses for the outcome of a job
    log, files      lines for people; small files that are replaced whole
    secret          texts that must not be printed

`make check` fails if an import breaks this order (pyproject.toml). Nothing here runs inside the window,
because the engine does not call back.
"""
