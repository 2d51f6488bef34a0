/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the builder baked into the enclave: the manifest's decisions, the program's places, the hashes of trusted files.
 * It is a record of its own, read-only and measured, so everything in it is believed. guest/enclaves/config.py writes
 * it; a test compares the two. Offsets are from the start of the record.
 */
#ifndef RUNTIME_CONFIG_H
#define RUNTIME_CONFIG_H

#include "base.h"

#define CONFIG_AT 0x700010090000
#define HEAP_AT 0x7000200a0000
#define CONFIG_MAGIC 0x3247464356454c56 /* "VLEVCFG2" */
#define CALL_NUMBERS 512
#define CHUNK 0x10000
#define HASH_BYTES 32

enum config_flags {
	FLAG_ARGUMENTS_OUTSIDE = 1,
	FLAG_END_ON_UNSUPPORTED = 2,
	FLAG_SIGNALS_OUTSIDE = 4,
};

enum rule_kind {
	RULE_PASS = 2,
	RULE_READ = 3, /* passed through, to be read only */
	RULE_SEALED = 4,
	RULE_SECRET = 5, /* what an owner sent, by the last part of the path */
};

/* `path` and all that is below it if `tree`. */
struct config_rule {
	u32 kind;
	u32 tree;
	u32 path;
	u32 length;
};

/* Sorted by path. `hashes`: BLAKE2b of each chunk of CHUNK bytes, the last may be shorter. */
struct config_file {
	u32 path;
	u32 length;
	u64 size;
	u64 hashes;
};

struct config_area {
	u64 start;
	u64 end;
	u32 prot;
	u32 reserved;
};

struct config {
	u64 magic;
	u64 size;
	u64 flags;
	u64 entry;	   /* where the program begins: its interpreter's entry if it has one */
	u64 program_entry; /* AT_ENTRY */
	u64 headers;	   /* AT_PHDR */
	u64 header_count;
	u64 interpreter; /* AT_BASE */
	u64 brk_start;
	u64 brk_end; /* as far as brk may grow */
	u64 stack_bytes;
	u64 heap_bytes; /* of the runtime's own, at HEAP_AT */
	u64 pool_pages;
	u64 slots;
	u64 calls[CALL_NUMBERS / 64]; /* bit n: system call n is allowed */
	u64 signals;		      /* bit n-1: signal n is taken from outside */
	u32 areas, area_count;
	u32 rules, rule_count;
	u32 files, file_count;
	/* Strings, each with its NUL, one after the other. */
	u32 arguments, argument_count;
	u32 environment, environment_count;
	u32 passed, passed_count; /* names of variables that come from outside */
	u32 program, program_length;
	u32 directory, directory_length;
	u32 started, started_count;    /* paths of programs outside that this one may start */
	u32 manifest, manifest_length; /* what the builder says, for readers; measured */
};

#ifdef RUNTIME_CONFIG_PLACE
extern const struct config *RUNTIME_CONFIG_PLACE;
#define CONFIG RUNTIME_CONFIG_PLACE
#else
#define CONFIG ((const struct config *)CONFIG_AT)
#endif

static inline const void *config_at(u32 offset)
{
	return (const u8 *)CONFIG + offset;
}

#endif
