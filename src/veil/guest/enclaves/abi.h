/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What veil/formats/enclaves.py and enclave_pages.py say, for the driver, the starter and the runtime. A test compares them. */
#ifndef VEIL_ENCLAVE_ABI_H
#define VEIL_ENCLAVE_ABI_H

#ifdef __ASSEMBLER__
/* numbers only */
#elif defined(__KERNEL__)
#include <linux/types.h>
#else
#include <stdint.h>
#endif

#define VEIL_ENC_ARENA 0x100000000000
#define VEIL_ENC_WINDOW 0x600000040000
#define VEIL_ENC_WINDOW_STRIDE 0x40000
#define VEIL_ENC_RUNTIME 0x700000000000
#define VEIL_ENC_THREADS 0x710000080000
#define VEIL_ENC_THREAD_STRIDE 0x10000
#define VEIL_ENC_SYSTEM 0x720000000000
#define VEIL_ENC_SYSTEM_STRIDE 0x2000
#define VEIL_ENC_IDT 0x72fffffff000
#define VEIL_ENC_INFO 0x730000000000
#define VEIL_ENC_TOP 0x7ffffffff000

#define VEIL_ENC_MAX_SLOTS 64
#define VEIL_ENC_MAX_RECORDS 512
#define VEIL_ENC_MAX_PAGES 0x100000
#define VEIL_ENC_VECTOR_STRIDE 16
#define VEIL_ENC_CODE_SELECTOR 0x23
#define VEIL_ENC_DATA_SELECTOR 0x1b

/* Offsets in a slot's area: ThreadPart. */
#define VEIL_ENC_CONTROL 0x0
#define VEIL_ENC_IST1_TOP 0x3000
#define VEIL_ENC_IST2_TOP 0x6000
#define VEIL_ENC_IST3_TOP 0x8000
#define VEIL_ENC_STACK_TOP 0xf000
#define VEIL_ENC_MAILBOX 0xf000

/* Prot */
#define VEIL_ENC_R 1
#define VEIL_ENC_W 2
#define VEIL_ENC_X 4

#define VEIL_ENC_MAILBOX_PENDING 0xffffffff
#define VEIL_ENC_MAILBOX_DATA 0x40
#define VEIL_ENC_INFO_CPUID 0x100
#define VEIL_ENC_INFO_CPUID_ENTRIES 64

#ifndef __ASSEMBLER__

/* WindowState */
enum veil_window_state {
	VEIL_WINDOW_IDLE = 0,
	VEIL_WINDOW_SYSCALL = 1,
	VEIL_WINDOW_SERVICE = 2,
	VEIL_WINDOW_THREAD_EXIT = 3,
	VEIL_WINDOW_EXIT = 4,
	VEIL_WINDOW_SPAWN = 5,
	VEIL_WINDOW_INTERRUPT = 6,
	VEIL_WINDOW_PROGRAM = 7,
};

/* EndReason */
enum veil_end_reason {
	VEIL_END_PROGRAM = 0,
	VEIL_END_RUNTIME = 1,
	VEIL_END_TOO_BIG = 2,
};

/* WindowBlock. Untrusted: copy once, check, use. */
struct veil_window_block {
	uint32_t state;
	uint32_t interrupt;
	uint64_t nr;
	uint64_t args[6];
	int64_t result;
	uint64_t signals;
};

/* StartBlock. Untrusted, at the second page of slot 0's window. */
#define VEIL_ENC_START_MAGIC 0x534752414c494556
#define VEIL_ENC_MOST_STRINGS 2048
#define VEIL_ENC_MOST_TEXT 0x20000
struct veil_start_block {
	uint64_t magic;
	uint32_t arguments;
	uint32_t environment;
	uint32_t bytes;
	uint32_t reserved_014;
};

/* MailboxCall */
enum veil_mailbox_call {
	VEIL_MAILBOX_MAP = 1,
	VEIL_MAILBOX_UNMAP = 2,
	VEIL_MAILBOX_PROTECT = 3,
	VEIL_MAILBOX_LOG = 4,
	VEIL_MAILBOX_SECRET = 5,
	VEIL_MAILBOX_REPORT = 6,
	VEIL_MAILBOX_KEY = 7,
	VEIL_MAILBOX_TIME = 8,
	VEIL_MAILBOX_FAULT = 9,
	VEIL_MAILBOX_FILL = 10,
};

/* Mailbox */
struct veil_mailbox {
	uint32_t call;
	uint32_t status;
	uint64_t args[6];
	uint64_t result;
	uint8_t data[0xfc0];
};

/* An entry of the CPUID page of a launch. */
struct veil_cpuid_entry {
	uint32_t eax_in;
	uint32_t ecx_in;
	uint64_t xcr0_in;
	uint64_t xss_in;
	uint32_t eax;
	uint32_t ebx;
	uint32_t ecx;
	uint32_t edx;
	uint64_t reserved_028;
};

/* InfoPage */
struct veil_enclave_info {
	uint8_t magic[8];
	uint32_t version;
	uint32_t slots;
	uint32_t window_pages;
	uint32_t cpuid_entries;
	uint64_t tsc_khz;
	uint64_t enclave;
	uint64_t pool_pages;
	uint64_t arena_pages;
	uint64_t reserved_038;
	uint8_t measurement[48];
	uint8_t reserved_070[0x90];
	struct veil_cpuid_entry cpuid[64];
	uint8_t reserved_d00[0x300];
};

#endif
#endif
