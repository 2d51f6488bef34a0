# SPDX-License-Identifier: GPL-2.0-or-later
"""PTRACE_SINGLEBLOCK of the stock kernel: a debugger goes from branch to branch."""

from __future__ import annotations

from pathlib import Path

from tests.guest.enclaves.native_runtime import compile_program
from veil.cvm import ConfidentialVM

#: Where a child stops that is gone through so, behind its breakpoint.
_PROGRAM = r"""
#include <signal.h>
#include <stdio.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#define SINGLEBLOCK 33

extern char begin[], jumped[], taken[], called[];

static void child(void)
{
    ptrace(PTRACE_TRACEME, 0, 0, 0);
    __asm__ volatile(
        "int3\n begin: .rept 40\n nop\n .endr\n jmp jumped\n nop\n"
        "jumped: .rept 40\n nop\n .endr\n xor %%eax, %%eax\n jnz begin\n jz taken\n nop\n"
        "taken: .rept 40\n nop\n .endr\n call called\n nop\n"
        "called: pop %%rax\n" ::: "rax", "memory", "cc");
    _exit(7);
}

static unsigned long go_on(int how, pid_t pid)
{
    struct user_regs_struct registers;
    int status;

    ptrace(how, pid, 0, 0);
    waitpid(pid, &status, 0);
    if (!WIFSTOPPED(status) || WSTOPSIG(status) != SIGTRAP)
        return 0;
    ptrace(PTRACE_GETREGS, pid, 0, &registers);
    return registers.rip;
}

int main(void)
{
    const unsigned long wanted[] = { (unsigned long)jumped, (unsigned long)taken, (unsigned long)called };
    pid_t pid = fork();
    int status, right = 0, steps = 0;

    if (!pid)
        child();
    waitpid(pid, &status, 0);
    for (int i = 0; i < 3; i++)
        right += go_on(SINGLEBLOCK, pid) == wanted[i];
    steps = go_on(PTRACE_SINGLESTEP, pid) == (unsigned long)called + 1;
    ptrace(PTRACE_CONT, pid, 0, 0);
    waitpid(pid, &status, 0);
    printf("blocks %d, then instructions %d, status %d\n", right, steps, WEXITSTATUS(status));
}
"""


def test_from_branch_to_branch(vm: ConfidentialVM, tmp_path: Path) -> None:
    vm.copy_in(compile_program(tmp_path, _PROGRAM, "-static"), "/tmp/blocks")
    result = vm.run(["/tmp/blocks"])
    assert (result.stdout, result.stderr) == (b"blocks 3, then instructions 1, status 7\n", b"")
