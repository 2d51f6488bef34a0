/* SPDX-License-Identifier: GPL-2.0 */
/* VeilS-LOG's part of the driver: what its files share. */
#ifndef VEIL_LOG_H
#define VEIL_LOG_H

#include <linux/types.h>

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

/* log.c: all of it, for the driver's table */
int veil_log_begin(void);
void veil_log_end(void);
int veil_log_state(char *text, size_t size);

/* hand_over.c */
struct veil_request;
/* Sends what `request` has of a call, head and data; waits as long as the policy of the log says. Was it taken? */
bool veil_log_hand_over(struct veil_request *request);
int veil_log_hand_over_state(char *text, size_t size);

/* records.c: audit records */
int veil_log_records_begin(void);
void veil_log_records_end(void);
int veil_log_records_state(char *text, size_t size);
/* Hands over what there is of tasks that ended in the middle of an event. */
void veil_log_flush_dead_tasks(void);

/* intent.c: what is about to happen */
int veil_log_intent_begin(void);
void veil_log_intent_end(void);
int veil_log_intent_state(char *text, size_t size);

/* rules.c: audit rules that the owner wants */
int veil_log_rules_begin(void);
void veil_log_rules_end(void);
void veil_log_rules_wanted(u32 generation);
u32 veil_log_rules_loaded(void);

/* heartbeat.c: signs of life */
int veil_log_heartbeat_begin(void);
void veil_log_heartbeat_end(void);
int veil_log_heartbeat_state(char *text, size_t size);

#endif
