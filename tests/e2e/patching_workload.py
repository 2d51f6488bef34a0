# SPDX-License-Identifier: GPL-2.0-or-later
"""A script that has Linux patch its own code."""

from __future__ import annotations

__all__ = ["WORKLOAD"]

#: Switches jump labels, static calls and trampolines: networking, cgroup controllers, tracepoints on and off.
WORKLOAD = """
ip link set lo up; ping -c1 127.0.0.1
mkdir -p /tmp/groups /tmp/trace; mount -t cgroup2 none /tmp/groups
for name in $(cat /tmp/groups/cgroup.controllers); do echo +$name > /tmp/groups/cgroup.subtree_control; done
mkdir /tmp/groups/one; echo $$ > /tmp/groups/one/cgroup.procs
mount -t tracefs none /tmp/trace
for event in sched/sched_switch raw_syscalls irq kmem net; do echo 1 > /tmp/trace/events/$event/enable; done
echo 0 > /tmp/trace/events/kmem/enable
grep -q sched_switch /tmp/trace/trace && echo traced
"""
