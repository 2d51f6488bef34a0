/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Events: system calls (#UD, for EFER.SCE is 0), exceptions of the program, and whatever a host injects.
 *
 * No event is believed for its vector. A system call has its instruction at RIP; a page fault has its address in the
 * VMSA, which the service reads; each other exception must be one that the instruction at RIP can raise. All else is an
 * attack (WeSee and Heckler inject #VC and int 0x80), and ends the enclave: no handler of the program runs for it.
 */
#include "machine.h"
#include "memory.h"
#include "runtime.h"
#include "signal_numbers.h"

enum vector {
	VECTOR_DE = 0,
	VECTOR_DB = 1,
	VECTOR_BP = 3,
	VECTOR_UD = 6,
	VECTOR_PF = 14,
	VECTOR_MF = 16,
	VECTOR_XM = 19,
	VECTOR_VC = 29,
};

enum page_fault {
	FAULT_WRITE = 2,
	FAULT_USER = 4,
	FAULT_RESERVED = 8,
	FAULT_FETCH = 16,
};

#define ERROR_CPUID 0x72
/* In the last page below the middle of the address space, where nothing is ever mapped. */
#define NO_FAULT (VEIL_ENC_TOP + 0xf00)
#define FLAG_TF 0x100
#define SYSCALL_OPCODE 0x050f
#define CPUID_BYTES 2
#define LONGEST_INSTRUCTION 15

/* The bytes at RIP, zeros behind what can be read. */
struct instruction {
	u8 bytes[LONGEST_INSTRUCTION + 1];
	u32 opcode; /* index behind prefixes */
};

static void fetch(struct thread *self, u64 rip, struct instruction *to)
{
	u32 i = 0;

	memset(to, 0, sizeof(*to));
	if (copy_in(to->bytes, rip, LONGEST_INSTRUCTION)) {
		/* It may be the last before a page that is not there. */
		u64 part = least(LONGEST_INSTRUCTION, PAGE - rip % PAGE);

		if (copy_in(to->bytes, rip, part))
			attacked(self, "an event at %x, where the program has no code", rip);
	}
	for (; i < LONGEST_INSTRUCTION - 2; i++) {
		u8 byte = to->bytes[i];

		if (byte != 0x66 && byte != 0xf2 && byte != 0xf3 && byte != 0xf0 && byte != 0x2e && byte != 0x3e &&
		    byte != 0x64 && byte != 0x65 && byte != 0x26 && byte != 0x36 && byte != 0x67)
			break;
	}
	if (to->bytes[i] >> 4 == 4)
		i++; /* REX */
	to->opcode = i;
}

static _Noreturn void injected(struct thread *self, const char *what)
{
	struct regs *regs = &self->regs;

	attacked(self, "%s with error code %x at %x: no instruction there raises it", what, regs->error, regs->rip);
}

/* Leaves whose answer depends on ECX; the others ignore it. */
static bool has_subleaves(u32 leaf)
{
	switch (leaf) {
	case 4:
	case 7:
	case 0xb:
	case 0xd:
	case 0x8000001d:
		return true;
	default:
		return false;
	}
}

static void cpuid(struct regs *regs)
{
	const struct veil_enclave_info *info = (const struct veil_enclave_info *)VEIL_ENC_INFO;
	u32 leaf = (u32)regs->rax, subleaf = has_subleaves(leaf) ? (u32)regs->rcx : 0;
	u32 count = (u32)least(info->cpuid_entries, VEIL_ENC_INFO_CPUID_ENTRIES);

	regs->rax = regs->rbx = regs->rcx = regs->rdx = 0;
	for (u32 i = 0; i < count; i++) {
		const struct veil_cpuid_entry *entry = &info->cpuid[i];

		if (entry->eax_in != leaf || (has_subleaves(leaf) && entry->ecx_in != subleaf))
			continue;
		regs->rax = entry->eax;
		regs->rbx = entry->ebx;
		regs->rcx = entry->ecx;
		regs->rdx = entry->edx;
		break;
	}
	regs->rip += CPUID_BYTES;
}

static void undefined_opcode(struct thread *self)
{
	struct regs *regs = &self->regs;
	struct instruction at;
	u8 first, second;
	u16 two;

	if (!copy_in(&two, regs->rip, sizeof(two)) && two == SYSCALL_OPCODE) {
		system_call(self);
		return;
	}
	fetch(self, regs->rip, &at);
	first = at.bytes[at.opcode];
	second = at.bytes[at.opcode + 1];
	/* UD2, UD1, UD0, and encodings that this machine may not have: VEX, EVEX, three-byte opcodes */
	if ((first == 0x0f && (second == 0x0b || second == 0xb9 || second == 0xff || second == 0x38 || second == 0x3a ||
			       second == 0x01 || second == 0xc7 || second == 0xae)) ||
	    first == 0xc4 || first == 0xc5 || first == 0x62 || first == 0x06 || first == 0x0e) {
		fault(self, SIGILL, ILL_ILLOPN, regs->rip);
		return;
	}
	injected(self, "#UD");
}

static void page_fault(struct thread *self)
{
	struct regs *regs = &self->regs;
	u64 error = regs->error, address;
	u32 needed = error & FAULT_FETCH ? PROT_EXEC : error & FAULT_WRITE ? PROT_WRITE : PROT_READ;
	bool there;
	s64 brought;

	address = memory_fault(self, &there);
	if (address == NO_FAULT)
		injected(self, "#PF");
	if (!(error & FAULT_USER) || error & FAULT_RESERVED)
		injected(self, "#PF");
	self->faulted = true;
	brought = there ? 0 : memory_bring(self, address, needed);
	if (brought == -EIO)
		fault(self, SIGBUS, BUS_ADRERR, address);
	else if (brought)
		fault(self, SIGSEGV, memory_prot(self, address) < 0 ? SEGV_MAPERR : SEGV_ACCERR, address);
}

void forget_fault_address(struct thread *self)
{
	u8 byte;

	self->forgets = true;
	copy_user(&byte, (const void *)NO_FAULT, 1);
	self->forgets = false;
	self->faulted = false;
}

static void divide_error(struct thread *self)
{
	struct instruction at;
	u8 byte;

	fetch(self, self->regs.rip, &at);
	byte = at.bytes[at.opcode];
	if ((byte != 0xf6 && byte != 0xf7) || (at.bytes[at.opcode + 1] >> 3 & 7) < 6)
		injected(self, "#DE");
	fault(self, SIGFPE, FPE_INTDIV, self->regs.rip);
}

static void breakpoint(struct thread *self)
{
	u8 byte = 0;

	if (copy_in(&byte, self->regs.rip - 1, 1) || byte != 0xcc)
		injected(self, "#BP");
	fault(self, SIGTRAP, TRAP_BRKPT, self->regs.rip);
}

static void debug_exception(struct thread *self)
{
	u8 byte = 0;

	if (!(self->regs.rflags & FLAG_TF) && (copy_in(&byte, self->regs.rip - 1, 1) || byte != 0xf1))
		injected(self, "#DB");
	fault(self, SIGTRAP, TRAP_TRACE, self->regs.rip);
}

static void floating_point(struct thread *self, bool simd)
{
	u32 mxcsr;
	u16 control, status = fp_status(self, &mxcsr, &control);
	u32 raised = simd ? mxcsr & ~(mxcsr >> 7) & 0x3f : status & ~control & 0x3fu;

	if (!raised)
		injected(self, simd ? "#XM" : "#MF");
	fault(self, SIGFPE, raised & 4 ? FPE_FLTDIV : FPE_FLTINV, self->regs.rip);
}

static void vmm_communication(struct thread *self)
{
	struct instruction at;

	fetch(self, self->regs.rip, &at);
	if (self->regs.error != ERROR_CPUID || at.bytes[0] != 0x0f || at.bytes[1] != 0xa2)
		injected(self, "#VC");
	cpuid(&self->regs);
}

static void handle(struct thread *self)
{
	switch (self->regs.vector) {
	case VECTOR_UD:
		undefined_opcode(self);
		break;
	case VECTOR_PF:
		page_fault(self);
		break;
	case VECTOR_DE:
		divide_error(self);
		break;
	case VECTOR_BP:
		breakpoint(self);
		break;
	case VECTOR_DB:
		debug_exception(self);
		break;
	case VECTOR_MF:
	case VECTOR_XM:
		floating_point(self, self->regs.vector == VECTOR_XM);
		break;
	case VECTOR_VC:
		vmm_communication(self);
		break;
	default:
		/* #GP and #SS among them: who raised them cannot be proved, and they end most programs anyway. */
		attacked(self, "vector %d with error code %x at %x", self->regs.vector, self->regs.error,
			 self->regs.rip);
	}
	deliver_signals(self, -1);
}

/* An address that is still in CR2 could be played again, when the page is not there any more. */
void event_of_program(struct thread *self)
{
	self->buffer_used = 0;
	handle(self);
	if (self->faulted)
		forget_fault_address(self);
}

void event_in_runtime(struct thread *self, struct frame *frame)
{
	bool copies = frame->rip >= (u64)copy_user_site && frame->rip < (u64)copy_user_fault;
	bool swaps = frame->rip == (u64)swap_user_site;
	u32 needed = frame->error & FAULT_WRITE ? PROT_WRITE : PROT_READ;
	u64 address, start, pages;
	bool there = false;

	/* The instruction is looked at again, by copy_in(). */
	if (frame->vector == VECTOR_PF && frame->rip == (u64)peek_site) {
		self->faulted = true;
		frame->rip = (u64)peek_fault;
		return;
	}
	if (frame->vector != VECTOR_PF || (!copies && !swaps) || frame->error & (FAULT_RESERVED | FAULT_FETCH))
		attacked(self, "vector %d with error code %x in the runtime at %x", frame->vector, frame->error,
			 frame->rip);
	if (self->forgets) {
		frame->rip = (u64)copy_user_fault;
		return;
	}
	/* Whoever moves pages has the lock of the map. */
	address = self->moves ? ask_fault(self, 0, 0, 0, &start, &pages) : memory_fault(self, &there);
	if (address == NO_FAULT)
		attacked(self, "#PF in the runtime at %x, which the processor did not raise", frame->rip);
	self->faulted = true;
	/* Pages that are being moved were there: the service has brought one back that the kernel had taken. */
	if (there || self->moves || !memory_bring(self, address, needed))
		return;
	frame->rip = (u64)(copies ? copy_user_fault : swap_user_fault);
}
