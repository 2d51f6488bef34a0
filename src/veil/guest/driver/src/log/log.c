// SPDX-License-Identifier: GPL-2.0
/*
 * VeilS-LOG in the kernel: its parts, and its line in /dev/veil. There
 *	records		audit records handed to VeilS-LOG
 *	calls		requests that it took: records, intents and heartbeats
 *	waited_full	requests that it refused because it was full, and that were made again
 *	waited_host	requests that the host did not run it for, and that were made again
 *	lost		requests that it refused as malformed
 *	intents		intent records made
 *	ticks		of the timer that the heartbeats tell of
 */
#include <linux/kernel.h>

#include "../veil.h"
#include "log.h"

/* The heartbeat comes last: it uses the others. */
static const struct veil_part parts[] = {
	{ "rules", veil_log_rules_begin, veil_log_rules_end },
	{ "records", veil_log_records_begin, veil_log_records_end, veil_log_records_state },
	{ "hand_over", NULL, NULL, veil_log_hand_over_state },
	{ "intent", veil_log_intent_begin, veil_log_intent_end, veil_log_intent_state },
	{ "heartbeat", veil_log_heartbeat_begin, veil_log_heartbeat_end, veil_log_heartbeat_state },
};

int veil_log_begin(void)
{
	return veil_parts_begin(parts, ARRAY_SIZE(parts));
}

void veil_log_end(void)
{
	veil_parts_end(parts, ARRAY_SIZE(parts));
}

int veil_log_state(char *text, size_t size)
{
	int length = 0;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(parts); i++)
		if (parts[i].state)
			length += parts[i].state(text + length, size - length);
	return length;
}
