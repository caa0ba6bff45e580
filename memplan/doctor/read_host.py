"""The kernel's and the container's words when the host runs out of memory, and nvidia-smi's table.

Source: mm/oom_kill.c and mm/memcontrol.c of Linux 4.x to 6.x; kubelet's and docker's states; nvidia-smi of drivers 390 to 580.
"""

from __future__ import annotations

from memplan.doctor.sightings import pattern

PATTERNS = (
    pattern(
        "kernel_killed",
        "illed process",
        r"(?P<scope>Memory cgroup out of memory|Out of memory(?: \(oom_kill_allocating_task\))?): ?Kill(?:ed)? process (?P<pid>\d+) \((?P<process>[^)]{1,40})\)"
        r"(?:[^\n]{0,80}?total-vm:(?P<virtual_kib>\d+)kB, anon-rss:(?P<anonymous_kib>\d+)kB(?:, file-rss:(?P<file_kib>\d+)kB)?(?:, shmem-rss:(?P<shared_kib>\d+)kB)?)?",
    ),
    pattern(
        "kernel_killed_old",
        "illed process",
        r"Killed process (?P<pid>\d+)[ ,]+\(?(?P<process>[\w.:/-]{1,40})\)?[^\n]{0,40}?total-vm:(?P<virtual_kib>\d+)kB, anon-rss:(?P<anonymous_kib>\d+)kB",
    ),
    pattern(
        "kernel_constraint",
        "oom-kill:constraint",
        r"oom-kill:constraint=(?P<constraint>CONSTRAINT_\w+)[^\n]{0,400}?task=(?P<process>[^,]{1,40}),pid=(?P<pid>\d+)",
    ),
    pattern("kernel_invoked", "invoked oom-killer", r"(?P<process>\S{1,40}) invoked oom-killer"),
    pattern("kernel_limit", "limit", r"memory: usage (?P<usage_kib>\d+)kB, limit (?P<limit_kib>\d+)kB"),
    pattern("kernel_swap", "swap", r"Free swap\s+= (?P<free_kib>\d+)kB|Total swap = (?P<total_kib>\d+)kB"),
    pattern("oom_killed", "OOMKilled", r"OOMKilled(?:\"?:? ?(?P<value>true|false))?"),
    pattern(
        "exit_137", "137", r"(?:[Ee]xit(?:ed)?(?: with)?(?: ?[Cc]ode)?|exit status|returned)\W{0,4}137\b|\bcode 137\b"
    ),
    pattern("killed_word", "Killed", r"^(?:[^:\n]{0,200}[\s|\]])?Killed\s*$"),
    pattern("sigkill", "SIGKILL", r"(?:sent|signal|with)[^\n]{0,20} SIGKILL|Signals\.SIGKILL|signal 9\b"),
    pattern(
        "ray_oom",
        "low on memory",
        r"(?:node running low on memory|killed due to the node running low on memory|Task was killed due to)",
    ),
    pattern("smi", "NVIDIA-SMI", r"NVIDIA-SMI (?P<driver>[\d.]+)"),
    pattern("smi_memory", "MiB /", r"(?P<used_mib>\d+)MiB / +(?P<total_mib>\d+)MiB"),
    pattern(
        "smi_gpu",
        "|   ",
        r"^\|\s+(?P<index_n>\d+)\s+(?P<gpu>(?:NVIDIA|Tesla|GeForce|Quadro|Graphics|RTX|A\d|H\d|L\d)[\w .()-]{0,60}?)\s+(?:On|Off|N/A|Persist)",
    ),
    pattern(
        "smi_process",
        "MiB |",
        r"^\|\s+(?P<index_n>\d+)\s+(?:(?:N/A|\d+)\s+(?:N/A|\d+)\s+)?(?P<pid_n>\d+)\s+(?P<type>[CGM+]+)\s+(?P<process>\S.{0,80}?)\s+(?P<used_mib>\d+)MiB \|",
    ),
    pattern("smi_mig", "MIG", r"MIG (?:devices|M\.)"),
    pattern(
        "smi_csv",
        " MiB",
        r"^(?P<gpu>[^,]{2,60}), (?P<total_mib>\d+) MiB, (?P<used_mib>\d+) MiB(?:, (?P<free_mib>\d+) MiB)?",
    ),
    pattern("smi_persist", "Disp.A", r"Disp\.A"),
)
