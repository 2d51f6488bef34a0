// SPDX-License-Identifier: GPL-2.0
/* Requests to VeilS-LOG that are made until it has taken them. */
#include <linux/atomic.h>
#include <linux/kernel.h>

#include "../call.h"
#include "log.h"

static atomic64_t calls, waited_full, waited_host, lost;

/*
 * While the log is full, or the host does not run the services, whoever made the records waits: that is what the policy
 * "halt" means. (With "drop" the service never says that it is full.) No other status changes by waiting.
 */
static bool wait_for_log(enum veil_status status)
{
	if (status != VEIL_FULL && status != VEIL_NO_ANSWER)
		return false;
	atomic64_inc(status == VEIL_FULL ? &waited_full : &waited_host);
	return true;
}

bool veil_log_hand_over(struct veil_request *request)
{
	bool taken;

	request->service = VEIL_LOG_SERVICE;
	taken = veil_ask_or_wait(request, wait_for_log) == VEIL_OK;
	atomic64_inc(taken ? &calls : &lost);
	return taken;
}

int veil_log_hand_over_state(char *text, size_t size)
{
	return scnprintf(text, size, " calls %lld waited_full %lld waited_host %lld lost %lld", atomic64_read(&calls),
			 atomic64_read(&waited_full), atomic64_read(&waited_host), atomic64_read(&lost));
}
