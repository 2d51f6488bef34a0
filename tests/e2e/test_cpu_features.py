# SPDX-License-Identifier: GPL-2.0-or-later
"""The stock kernel on a processor with XSAVE, protection keys and DebugSwap, locked down, with enclaves; and NMIs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.snapshots import Resume
from tests.guest.enclaves.native_runtime import compile_program
from veil.cache import Cache
from veil.cvm import ConfidentialVM
from veil.cvm.enclaves import enclave_command, image_place
from veil.formats.enclave_settings import ON as ENC_ON
from veil.formats.enclave_settings import EncSettings
from veil.formats.kci_settings import ON as KCI_ON
from veil.formats.kci_settings import KciSettings
from veil.guest.enclaves.build import build_enclave
from veil.guest.enclaves.manifest import Manifest
from veil.guest.enclaves.trusted_files import ComputerFiles
from veil.image.services_image import protected_services

_FEATURES = ("xsave", "pku", "debug-swap")
#: Puts a number into all of SSE's and x87's registers and into PKRU, lets others run, and looks for it again; so often.
_KEEPER = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct state { unsigned long xmm[16][2]; double x87[8]; unsigned mxcsr; unsigned short control; unsigned keys; };

static void pass(const struct state *in, struct state *out, int keys)
{
    __asm__ volatile(
        "ldmxcsr 320(%[in])\n fldcw 324(%[in])\n"
        "fldl 256(%[in])\n fldl 264(%[in])\n fldl 272(%[in])\n fldl 280(%[in])\n"
        "fldl 288(%[in])\n fldl 296(%[in])\n fldl 304(%[in])\n fldl 312(%[in])\n"
#define LOAD(n) "movups 16*" #n "(%[in]), %%xmm" #n "\n"
        LOAD(0) LOAD(1) LOAD(2) LOAD(3) LOAD(4) LOAD(5) LOAD(6) LOAD(7)
        LOAD(8) LOAD(9) LOAD(10) LOAD(11) LOAD(12) LOAD(13) LOAD(14) LOAD(15)
        "test %[keys], %[keys]\n jz 1f\n xor %%ecx, %%ecx\n xor %%edx, %%edx\n mov 328(%[in]), %%eax\n wrpkru\n"
        "1: mov $24, %%eax\n syscall\n" /* sched_yield */
        "test %[keys], %[keys]\n jz 2f\n xor %%ecx, %%ecx\n rdpkru\n mov %%eax, 328(%[out])\n"
        "xor %%eax, %%eax\n wrpkru\n"
#define STORE(n) "movups %%xmm" #n ", 16*" #n "(%[out])\n"
        "2:" STORE(0) STORE(1) STORE(2) STORE(3) STORE(4) STORE(5) STORE(6) STORE(7)
        STORE(8) STORE(9) STORE(10) STORE(11) STORE(12) STORE(13) STORE(14) STORE(15)
        "fstpl 312(%[out])\n fstpl 304(%[out])\n fstpl 296(%[out])\n fstpl 288(%[out])\n"
        "fstpl 280(%[out])\n fstpl 272(%[out])\n fstpl 264(%[out])\n fstpl 256(%[out])\n"
        "stmxcsr 320(%[out])\n fnstcw 324(%[out])\n"
        :: [in] "r"(in), [out] "r"(out), [keys] "r"(keys)
        : "rax", "rcx", "rdx", "r11", "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7",
          "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}

int main(int count, char **arguments)
{
    unsigned long mark = strtoul(arguments[1], 0, 0), rounds = strtoul(arguments[2], 0, 0);
    int keys = count > 3;
    static struct state in, out;

    for (int i = 0; i < 16; i++)
        in.xmm[i][0] = ~(in.xmm[i][1] = mark << 32 | i);
    for (int i = 0; i < 8; i++)
        in.x87[i] = mark + i;
    in.mxcsr = 0x1f80 | (mark & 3) << 13;
    in.control = 0x37f | (mark & 3) << 10;
    in.keys = keys ? (unsigned)mark << 8 : 0;
    for (unsigned long i = 0; i < rounds; i++) {
        memset(&out, 0, sizeof(out));
        pass(&in, &out, keys);
        if (memcmp(&in, &out, sizeof(in))) {
            printf("lost in round %lu\n", i);
            return 1;
        }
    }
    puts("kept");
    return 0;
}
"""
_COUNT = 4


@pytest.fixture
def vm(resume: Resume) -> ConfidentialVM:
    """Locked down, with enclaves."""
    services = protected_services(KciSettings(mode=KCI_ON), EncSettings(mode=ENC_ON))
    return resume(cpu_features=_FEATURES, services=services)


def _shell(vm: ConfidentialVM, script: str, timeout: float = 200) -> str:
    result = vm.run(["/bin/sh", "-c", script], timeout=timeout)
    assert result.exit_status == 0, result.stderr
    return result.stdout.decode()


def test_the_kernel_uses_what_the_processor_has(vm: ConfidentialVM) -> None:
    flags = _shell(vm, "grep -m1 ^flags /proc/cpuinfo").split()
    assert {"xsave", "xsaveopt", "xsavec", "xgetbv1", "pku", "ospke"} <= set(flags)
    assert not {"avx", "xsaves"} & set(flags)
    log = _shell(vm, "dmesg")
    assert "Enabled xstate features 0x203, context size is 584 bytes, using 'compacted' format." in log
    assert "VeilS-KCI has locked the kernel down" in log
    for trouble in ("WARNING:", "BUG:", "Oops", "Call Trace"):
        assert trouble not in log


def test_a_processor_without_them_says_so(resume: Resume) -> None:
    flags = _shell(resume(), "grep -m1 ^flags /proc/cpuinfo").split()
    assert not {"xsave", "pku", "avx"} & set(flags)


@pytest.mark.soak
def test_registers_are_kept_from_program_to_program_and_over_enclaves(vm: ConfidentialVM, tmp_path: Path) -> None:
    """Four programs and an enclave take turns, each with its own numbers."""
    program = compile_program(tmp_path, _KEEPER, "-static")
    manifest = Manifest.of({"memory": "8M", "threads": 1, "arguments": {"outside": True}})
    place = tmp_path / "keeper.enclave"
    place.write_bytes(build_enclave(Cache(), ComputerFiles(), str(program), manifest).pack())
    vm.copy_in(program, "/tmp/keeper")
    vm.copy_in(place, image_place(place))
    outside = " ".join(f"/tmp/keeper {11 + number} 3000 keys & one{number}=$!\n" for number in range(_COUNT))
    inside = " ".join(enclave_command(place, ["99", "3000"]))
    waits = "\n".join(f"wait $one{number} || exit 1" for number in range(_COUNT))
    assert _shell(vm, f"{outside}\n{inside} || exit 1\n{waits}").split() == ["kept"] * (_COUNT + 1)


def test_a_key_keeps_a_program_out(vm: ConfidentialVM, tmp_path: Path) -> None:
    text = r"""
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
static sigjmp_buf back;
static void handler(int n, siginfo_t *info, void *context) { siglongjmp(back, info->si_code == SEGV_PKUERR ? 2 : 1); }
int main(void)
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
    volatile char *page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int key = pkey_alloc(0, 0);
    *page = 7;
    if (key < 0 || pkey_mprotect((void *)page, 4096, PROT_READ | PROT_WRITE, key))
        return 3;
    sigaction(SIGSEGV, &action, 0);
    *page = 8;
    pkey_set(key, PKEY_DISABLE_ACCESS);
    int how = sigsetjmp(back, 1);
    if (!how)
        printf("got %d\n", *page);
    pkey_set(key, 0);
    printf("%d %d\n", how, *page);
}
"""
    vm.copy_in(compile_program(tmp_path, text, "-static"), "/tmp/keys")
    assert _shell(vm, "/tmp/keys") == "2 8\n"


#: What gdb's hbreak and watch are made of, and `perf record -e mem:...`, of a program's memory and the kernel's.
_BREAKPOINTS = r"""
#define _GNU_SOURCE
#include <linux/hw_breakpoint.h>
#include <linux/perf_event.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile int variable, other;
static void __attribute__((noinline)) function(void) { __asm__ volatile("nop"); }

static void child(void)
{
    ptrace(PTRACE_TRACEME, 0, 0, 0);
    raise(SIGSTOP);
    for (int i = 0; i < 3; i++) {
        other += 1;
        function();
        variable = i + 1;
    }
    (void)variable;
    _exit(7);
}

static void set(pid_t pid, int number, unsigned long value)
{
    if (ptrace(PTRACE_POKEUSER, pid, offsetof(struct user, u_debugreg[number]), value))
        perror("debug register");
}

static int go_on(pid_t pid)
{
    int status;

    ptrace(PTRACE_CONT, pid, 0, 0);
    waitpid(pid, &status, 0);
    return status;
}

static void trace(void)
{
    pid_t pid = fork();
    int status, code = 0, data = 0;

    if (!pid)
        child();
    waitpid(pid, &status, 0);
    set(pid, 0, (unsigned long)function);
    set(pid, 1, (unsigned long)&variable);
    set(pid, 7, 1 << 0 | 1 << 2 | 0xdUL << 20);
    while (WIFSTOPPED(status = go_on(pid)) && WSTOPSIG(status) == SIGTRAP) {
        struct user_regs_struct registers;
        long hits = ptrace(PTRACE_PEEKUSER, pid, offsetof(struct user, u_debugreg[6]), 0);
        long now = ptrace(PTRACE_PEEKDATA, pid, &variable, 0);

        ptrace(PTRACE_GETREGS, pid, 0, &registers);
        if ((hits & 15) == 1 && registers.rip == (unsigned long)function)
            code++;
        if ((hits & 15) == 2 && (int)now == data + 1)
            data++;
        set(pid, 6, 0);
    }
    printf("ptrace %d %d %d\n", code, data, WEXITSTATUS(status));
}

static int event(unsigned type, unsigned long address, unsigned length)
{
    struct perf_event_attr attribute = {
        .type = PERF_TYPE_BREAKPOINT, .size = sizeof(attribute), .bp_type = type, .bp_addr = address, .bp_len = length,
    };
    int fd = syscall(SYS_perf_event_open, &attribute, 0, -1, -1, 0);

    if (fd < 0)
        perror("perf_event_open");
    return fd;
}

static unsigned long long count(int fd)
{
    unsigned long long value = 0;

    if (read(fd, &value, sizeof(value)) != sizeof(value))
        perror("read");
    close(fd);
    return value;
}

int main(int arguments, char **argument)
{
    int written, used, run, kernel, i, sum = 0;

    trace();
    written = event(HW_BREAKPOINT_W, (unsigned long)&variable, 4);
    used = event(HW_BREAKPOINT_RW, (unsigned long)&variable, 4);
    run = event(HW_BREAKPOINT_X, (unsigned long)function, sizeof(long));
    kernel = event(HW_BREAKPOINT_X, strtoul(argument[1], 0, 16), sizeof(long));
    for (i = 0; i < 100; i++) {
        variable = i;
        sum += variable + other;
        if (i % 2)
            function();
        if (i % 4 == 0)
            syscall(SYS_getppid);
        if (i % 10 == 0)
            usleep(100); /* another program, with other debug registers */
    }
    printf("perf %llu %llu %llu %llu\n", count(written), count(used), count(run), count(kernel));
}
"""


def _breakpoints_met(vm: ConfidentialVM, tmp_path: Path) -> str:
    vm.copy_in(compile_program(tmp_path, _BREAKPOINTS, "-static"), "/tmp/breakpoints")
    return _shell(vm, "/tmp/breakpoints $(grep -w __x64_sys_getppid /proc/kallsyms | cut -d' ' -f1)")


def test_hardware_breakpoints(vm: ConfidentialVM, tmp_path: Path) -> None:
    assert _breakpoints_met(vm, tmp_path) == "ptrace 3 3 7\nperf 100 200 50 25\n"


def test_without_debug_swap_none_is_met(resume: Resume, tmp_path: Path) -> None:
    """The kernel's DR7 is the #VC handler's own."""
    assert _breakpoints_met(resume(), tmp_path) == "ptrace 0 0 7\nperf 0 0 0 0\n"
