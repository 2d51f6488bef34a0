# SPDX-License-Identifier: GPL-2.0-or-later
"""Enclaves in a booted guest: of a few instructions, through the driver and the starter, and Debian's own busybox."""

from __future__ import annotations

import io
import re
import struct
import tarfile
from importlib.resources import files
from pathlib import Path

import pytest

from tests.e2e.enclave_images import DATA, EXIT, PRINT, SERVE, call_window, enclave_image
from tests.e2e.snapshots import Resume
from tests.guest.enclaves.native_runtime import compile_program
from veil.cvm import CommandTimeout, ConfidentialVM, Result
from veil.cvm.enclaves import enclave_command, image_place
from veil.formats.enclave_pages import MailboxCall
from veil.formats.enclave_settings import ON, EncSettings
from veil.formats.enclaves import ARENA, THREADS, WINDOW
from veil.formats.page_sizes import PAGE_SIZE
from veil.image.services_image import protected_services

#: so many at once, on one VCPU
MANY = 200
ENCLAVES = protected_services(EncSettings(mode=ON))


@pytest.fixture
def vm(resume: Resume) -> ConfidentialVM:
    return resume(services=ENCLAVES)


def run(vm: ConfidentialVM, folder: Path, image: bytes, *arguments: str, timeout: float = 60) -> Result:
    place = folder / "test.enclave"
    place.write_bytes(image)
    return vm.run_enclave(place, arguments, timeout=timeout)


def counts(vm: ConfidentialVM) -> dict[str, int]:
    """The line of VeilS-ENC in /dev/veil."""
    (line,) = re.findall(r"^enc (.*)$", vm.run(["cat", "/dev/veil"]).stdout.decode(), re.M)
    words = line.split()
    return dict(zip(words[::2], map(int, words[1::2]), strict=True))


#: eight bytes of the mailbox's answer and its status, as what is printed
ANSWER = """
    mov rax, [r12 + 0xf038]
    mov r14, {data}
    mov [r14], rax
    mov eax, [r12 + 0xf004]
    mov [r14 + 8], rax
"""


def answer_of(call: str) -> str:
    """Code that prints u64 result, u64 status of a call of the service's."""
    shown = PRINT.replace("lea rsi, [rip + text]", f"mov rsi, {DATA}").replace("length", "16")
    return call + ANSWER.format(data=DATA) + shown


def test_streams_and_status(vm: ConfidentialVM, tmp_path: Path) -> None:
    result = run(vm, tmp_path, enclave_image(PRINT + EXIT(7)))
    assert (result.stdout, result.stderr, result.exit_status) == (b"hello\n", b"", 7)
    assert counts(vm)["enclaves"] == 0
    assert counts(vm)["made"] == 1
    ends = "mov qword ptr [rbx + 16], 0\nmov qword ptr [rbx + 24], 15\n" + call_window(4)
    assert run(vm, tmp_path, enclave_image(ends)).exit_status == 128 + 15


def test_what_the_service_answers(vm: ConfidentialVM, tmp_path: Path) -> None:
    code = (
        answer_of(SERVE(MailboxCall.MAP, ARENA, 3, 3))
        + f"mov rax, {ARENA + 0x2FF8}\nmov qword ptr [rax], 5\n"
        + answer_of(SERVE(MailboxCall.MAP, ARENA, 1, 3))
        + answer_of(SERVE(99))
        + EXIT(0)
    )
    result = run(vm, tmp_path, enclave_image(code))
    assert struct.unpack("<6Q", result.stdout) == (3, 0, 0, 3, 0, 2)
    assert result.exit_status == 0


def test_a_page_fault_and_its_address(vm: ConfidentialVM, tmp_path: Path) -> None:
    """The event comes to the enclave's own handler at CPL 3; where, only the service can tell."""
    wild = ARENA + 0x1234
    event = f"mov rbx, {WINDOW}\nmov r12, {THREADS}\n" + answer_of(SERVE(MailboxCall.FAULT)) + EXIT(9)
    result = run(vm, tmp_path, enclave_image(f"mov rax, {wild}\nmov rax, [rax]", event=event))
    assert result.exit_status == 9
    assert struct.unpack("<2Q", result.stdout) == (wild, 0)


def test_interrupts_are_the_kernels(vm: ConfidentialVM, tmp_path: Path) -> None:
    """The enclave computes for half a second; meanwhile the kernel's timer ticks, and it goes on where it was."""
    loop = """
        rdtsc
        shl rdx, 32
        or rax, rdx
        mov r15, rax
    2:  add r13, 1
        rdtsc
        shl rdx, 32
        or rax, rdx
        sub rax, r15
        cmp rax, 500000000
        jb 2b
    """
    result = run(vm, tmp_path, enclave_image(loop + PRINT + EXIT(0)))
    assert (result.stdout, result.exit_status) == (b"hello\n", 0)
    assert counts(vm)["entries"] > 10


def test_one_that_runs_forever_is_killed(vm: ConfidentialVM, tmp_path: Path) -> None:
    with pytest.raises(CommandTimeout):
        run(vm, tmp_path, enclave_image("2: jmp 2b"), timeout=2)
    assert vm.run(["sh", "-c", "for i in 1 2 3 4 5; do grep -q 'enclaves 0' /dev/veil && exit; sleep 1; done; exit 1"]
                  ).exit_status == 0  # fmt: skip
    assert run(vm, tmp_path, enclave_image(PRINT + EXIT(0))).stdout == b"hello\n"


@pytest.mark.parametrize("code", ["hlt", "ud2", "mov rsp, 1\nud2"], ids=["hlt", "ud2", "no stack"])
def test_what_an_enclave_cannot_do_is_its_own_end(vm: ConfidentialVM, tmp_path: Path, code: str) -> None:
    """HLT is an exception at CPL 3, and comes to its own handler, whatever its stack pointer is."""
    image = enclave_image(code, event=f"mov rbx, {WINDOW}\n" + EXIT(11))
    assert run(vm, tmp_path, image).exit_status == 11
    assert run(vm, tmp_path, enclave_image(PRINT + EXIT(0))).stdout == b"hello\n"


def test_threads_in_slots(vm: ConfidentialVM, tmp_path: Path) -> None:
    """Slot 0 starts slots 1 and 2; each says its number; slot 0 waits for what they write into their common memory."""
    thread = f"""
        test rdi, rdi
        jnz 5f
        mov qword ptr [rbx + 16], 1
        {call_window(5)}
        mov qword ptr [rbx + 16], 2
        {call_window(5)}
        mov r14, {DATA}
    6:  mov qword ptr [rbx + 8], 24
        {call_window(1)}
        cmp qword ptr [r14], 2
        jb 6b
        {PRINT}
        {EXIT(0)}
    5:  mov r14, {DATA}
        lock add qword ptr [r14], 1
        {call_window(3)}
    """
    result = run(vm, tmp_path, enclave_image(thread, slots=3))
    assert (result.stdout, result.exit_status) == (b"hello\n", 0)


def test_content_that_is_not_as_measured(vm: ConfidentialVM, tmp_path: Path) -> None:
    image = bytearray(enclave_image(PRINT + EXIT(7)))
    image[image.rindex(b"hello")] ^= 1
    result = run(vm, tmp_path, bytes(image))
    assert (result.stdout, result.exit_status) == (b"", 125)
    assert b"VeilS-ENC does not take the content: Operation not permitted" in result.stderr
    assert counts(vm)["enclaves"] == 0


def test_an_image_that_somebody_has_made_up(vm: ConfidentialVM, tmp_path: Path) -> None:
    """Its files go where they are to be, and nowhere else; and there are no links that lead away."""
    whole = enclave_image(PRINT + EXIT(0))
    for name, kind, words in (
        ("files/tmp/../etc/elsewhere", tarfile.REGTYPE, b"has a path that leads elsewhere"),
        ("files/etc/..", tarfile.REGTYPE, b"has a path that leads elsewhere"),
        ("files/etc/elsewhere", tarfile.SYMTYPE, b"something else than whole files"),
        ("files/etc/elsewhere", tarfile.CHRTYPE, b"something else than whole files"),
        ("files/etc/elsewhere", tarfile.GNUTYPE_SPARSE, b"something else than whole files"),
    ):
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        result = run(vm, tmp_path, member.tobuf(tarfile.USTAR_FORMAT) + whole)
        assert (result.stdout, result.exit_status, result.stderr.count(b"\n")) == (b"", 125, 1), result
        assert words in result.stderr
        assert vm.run(["ls", "-d", "/etc/elsewhere"]).exit_status != 0
    longer = tarfile.TarInfo("files/etc/elsewhere")
    longer.size = 1 << 30
    assert b"something else than whole files" in run(vm, tmp_path, longer.tobuf(tarfile.USTAR_FORMAT) + whole).stderr


_ADDS = r"""
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "device.h"
static char layout[65536], content[4096] __attribute__((aligned(4096)));
int main(int argc, char **argv)
{
	int device = open("/dev/veil-enclave", O_RDWR), file = open(argv[1], O_RDONLY);
	struct veil_enclave_create create = { .layout = (uint64_t)layout };
	create.length = read(file, layout, sizeof(layout));
	if (ioctl(device, VEIL_ENCLAVE_CREATE, &create))
		return 1;
	/* each argument: the page of the first record that is added */
	for (int i = 2; i < argc; i++) {
		struct veil_enclave_add add = { .page = argv[i][0] - '0', .from = (uint64_t)content, .pages = 1 };
		if (argv[i][1])
			add.from = 4096;
		puts(ioctl(device, VEIL_ENCLAVE_ADD, &add) ? strerror(errno) : "good");
	}
	return 0;
}
"""


def test_no_more_content_after_some_that_was_refused(vm: ConfidentialVM, tmp_path: Path) -> None:
    """Pages of each that fails may be the service's: they are kept, and a process must not go on with that."""
    with tarfile.open(fileobj=io.BytesIO(enclave_image(PRINT + EXIT(7), text=bytes(8192)))) as image:
        image.extract("layout", tmp_path, filter="data")
    program = compile_program(tmp_path, _ADDS, "-static", f"-I{files('veil.guest.enclaves')}")
    vm.copy_in(tmp_path / "layout", "/tmp/layout")
    vm.copy_in(program, "/tmp/adds")

    def adds(*pages: str) -> list[str]:
        return vm.run(["/tmp/adds", "/tmp/layout", *pages]).stdout.decode().splitlines()

    assert adds("0") == ["good"]
    assert adds("1", "0") == ["Operation not permitted", "Invalid argument"]
    assert adds("0x", "0") == ["Bad address", "Invalid argument"]


def test_no_device_without_the_service(resume: Resume, tmp_path: Path) -> None:
    vm = resume()
    assert vm.run(["ls", "/dev/veil-enclave"]).exit_status != 0
    assert vm.run(["ls", "/bin/veil-enclave"]).exit_status != 0


def test_many_at_once(vm: ConfidentialVM, tmp_path: Path) -> None:
    """Each waits in the kernel until all of them are there; then all go on, on one VCPU, and end."""
    code = f"""
        {PRINT}
        mov qword ptr [rbx + 8], 0
        mov qword ptr [rbx + 16], 0
        lea rax, [rbx + 0x1000]
        mov [rbx + 24], rax
        mov qword ptr [rbx + 32], 1
        {call_window(1)}
        {EXIT(3)}
    """
    image = tmp_path / "many.enclave"
    image.write_bytes(enclave_image(code, window_pages=2, pool_pages=0))
    vm.copy_in(image, image_place(image))
    script = f"""
        mkfifo /tmp/go; sleep 1000 < /tmp/go > /dev/null &
        one() {{ {" ".join(enclave_command(image, []))} < /tmp/go >> /tmp/out; echo $? >> /tmp/ends; }}
        for i in $(seq {MANY}); do one & done
        exec 3> /tmp/go
        until [ "$(grep -c hello /tmp/out)" = {MANY} ]; do sleep 0.1; done
        cat /dev/veil
        exec 3>&-
        kill %1; wait
        sort /tmp/ends | uniq -c
    """
    result = vm.run(["sh", "-c", script], timeout=300)
    assert f"enc enclaves {MANY} made {MANY}" in result.stdout.decode()
    assert result.stdout.split()[-2:] == [b"%d" % MANY, b"3"]
    assert counts(vm)["enclaves"] == 0


def test_more_memory_than_the_guest_has(vm: ConfidentialVM, tmp_path: Path) -> None:
    """What an enclave may have is not what it has: pages come when it maps them."""
    pages = 2 * vm.memory // PAGE_SIZE
    fill = f"""
        mov r14, {ARENA}
        mov r13, 300
    2:  mov [r14], r13
        add r14, 4096
        dec r13
        jnz 2b
    """
    code = answer_of(SERVE(MailboxCall.MAP, ARENA, 300, 3)) + fill + EXIT(0)
    result = run(vm, tmp_path, enclave_image(code, pool_pages=pages, arena_pages=pages))
    assert (struct.unpack("<2Q", result.stdout), result.exit_status) == ((300, 0), 0)


def test_pages_that_the_kernel_takes_back(vm: ConfidentialVM, tmp_path: Path) -> None:
    """The enclave waits while its pages go; then it touches them, and the runtime's way of asking brings them back."""
    event = f"""
        push rax
        push rbx
        push r12
        mov rbx, {WINDOW}
        mov r12, {THREADS}
        {SERVE(MailboxCall.FAULT)}
        pop r12
        pop rbx
        pop rax
        add rsp, 8
        iretq
    """
    code = f"""
        {SERVE(MailboxCall.MAP, ARENA, 64, 3)}
        mov r14, {ARENA}
        mov r13, 64
    2:  mov [r14], r13
        add r14, 4096
        dec r13
        jnz 2b
        {PRINT}
        mov qword ptr [rbx + 8], 0
        mov qword ptr [rbx + 16], 0
        lea rax, [rbx + 0x1000]
        mov [rbx + 24], rax
        mov qword ptr [rbx + 32], 1
        {call_window(1)}
        mov r14, {ARENA}
        mov r13, 64
    3:  cmp [r14], r13
        jne 4f
        add r14, 4096
        dec r13
        jnz 3b
        {EXIT(0)}
    4:  {EXIT(1)}
    """
    image = tmp_path / "paged.enclave"
    image.write_bytes(enclave_image(code, event=event, pool_pages=64))
    vm.copy_in(image, image_place(image))
    script = f"""
        mkfifo /tmp/go; sleep 1000 < /tmp/go > /dev/null &
        {" ".join(enclave_command(image, []))} < /tmp/go > /tmp/out & enclave=$!
        exec 3> /tmp/go
        until grep -q hello /tmp/out; do sleep 0.1; done
        echo 50 > /dev/veil-enclave; cat /dev/veil
        exec 3>&-
        wait $enclave; echo ended $?
        kill %1
    """
    result = vm.run(["sh", "-c", script], timeout=120)
    assert b" reclaimed 50 returned 0 paging 1 stuck 0\n" in result.stdout
    assert result.stdout.endswith(b"ended 0\n")
    # 1, 4, 8, 16, 32: more and more come at once to a thread that goes through its memory.
    assert counts(vm)["returned"] == 50
    assert counts(vm)["paging"] == 1 + 5
