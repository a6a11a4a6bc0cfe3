"""The extension handler: what the Azure Linux agent calls, and what Azure Backup reads.

One command of the agent is one process. ``commands`` answers it within milliseconds; the backup job itself is
done by ``worker`` in a process of its own, with the engine for everything between the freeze and the thaw.

    commands        install, enable, update, disable, uninstall
    worker          one backup job, from the settings to the final status
    environment     HandlerEnvironment.json, the sequence number, the handler's directories
    settings        what Azure Backup asks for: parsed once, into types that cannot be wrong
    protected       decrypts the protected settings
    mode            who takes the snapshots: the guest (blob by blob) or the host (all disks in one call)
    attempts        one freeze with its calls, as a backup job makes it
    freezing        what to freeze, and when one may
    guest, host     the two ways: requests out, answers in
    snapshots       what became of each disk
    outcome, codes  what a job came to, and the numbers that Azure Backup knows it by
    status          the two status documents; reporting writes them for the agent
    blobs, uploads  the status and log blobs
    background      what waits for the network beside the job; proxies says through what
    log, events     what support staff and the agent read; secret keeps secrets out of it
    state           what the handler remembers between two commands; processes names its workers
    lock            the lock that it shares with other extensions that freeze
    leftovers       what a killed run left frozen
    configuration   /etc/azure/vmbackup.conf and /etc/waagent.conf
    disks, sizes, telemetry     what the report says of the machine
    polling, service            restore points that the host asks for, without the agent

Nothing here runs inside the window: the engine does not call back.
"""
