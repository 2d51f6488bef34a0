/* SPDX-License-Identifier: GPL-2.0 */
/* What the parts of the driver share. */
#ifndef VEIL_H
#define VEIL_H

#include <linux/ftrace.h>
#include <linux/types.h>

/* veil/formats/request_block.py: the request block of a CPU. */
struct veil_block {
	u32 pending;
	u32 status;
	u16 service;
	u16 call;
	u32 length;
	u8 reserved[0x30];
	u8 body[];
};

#define VEIL_BLOCK_PAGES 8
#define VEIL_BODY_SIZE (VEIL_BLOCK_PAGES * 4096 - sizeof(struct veil_block))

/* veil/formats/channel.py, Status. */
enum veil_status {
	VEIL_OK = 0,
	VEIL_UNKNOWN_SERVICE = 1,
	VEIL_UNKNOWN_CALL = 2,
	VEIL_BAD_REQUEST = 3,
	VEIL_NOT_ALLOWED = 4,
	VEIL_UNAVAILABLE = 5,
	VEIL_FULL = 6,
	/* of the driver's own: the host did not run the services */
	VEIL_NO_ANSWER = 0x100,
};

#define VEIL_MAX_HOOKS 8

/* A function of ours that runs before a function of the kernel. */
struct veil_hook {
	const char *function;
	bool wanted;
	bool active;
	struct ftrace_ops ops;
};

int veil_hook(struct veil_hook *hooks, int count);
void veil_unhook(struct veil_hook *hooks, int count);

int veil_call_init(void);
void veil_call_exit(void);
struct veil_block *veil_block_get(unsigned long *flags);
void veil_block_put(unsigned long flags);
enum veil_status veil_ask(struct veil_block *block, u16 service, u16 call, u32 length);

#define VEIL_LOG_SERVICE 1

/* veil/formats/log.py: KernelCall, and pack_records. */
enum veil_log_call {
	VEIL_LOG_RECORDS = 0,
	VEIL_LOG_INTENT = 1,
	VEIL_LOG_HEARTBEAT = 2,
	VEIL_LOG_RULES = 3,
};

struct veil_record {
	u16 type;
	u16 reserved;
	u32 length;
};

/* veil/formats/log.py: Heartbeat, TICK_NS. */
struct veil_heartbeat {
	u16 version;
	u16 audit;
	u32 rules;
	u64 ticks;
};

#define VEIL_HEARTBEAT_VERSION 1
#define VEIL_TICK_MS 250

/* veil/formats/log.py: MAX_RULES_MESSAGE. */
#define VEIL_WORDS_MOST 1024

int veil_log_init(void);
void veil_log_exit(void);
int veil_log_state(char *text, size_t size);
void veil_log_keep(u16 call, const void *records, u32 length);

int veil_intent_init(void);
void veil_intent_exit(void);
u64 veil_intent_count(void);

int veil_rules_init(void);
void veil_rules_exit(void);
void veil_rules_wanted(u32 generation);
u32 veil_rules_loaded(void);

#endif
