// SPDX-License-Identifier: GPL-2.0
/* Requests to VeilS-ENC. */
#include <linux/errno.h>
#include <linux/sched/signal.h>

#include "../call.h"
#include "enc.h"

/*
 * Whoever asks waits until the host runs the service. A request may be served late, and pages that were taken meanwhile must
 * not be taken for the kernel's own.
 */
static bool wait_for_host(enum veil_status status)
{
	return status == VEIL_NO_ANSWER;
}

static int error_of(enum veil_status status)
{
	switch (status) {
	case VEIL_OK:
		return 0;
	case VEIL_BAD_REQUEST:
		return -EINVAL;
	case VEIL_NOT_ALLOWED:
		return -EPERM;
	case VEIL_FULL:
		return -ENOMEM;
	case VEIL_UNAVAILABLE:
		return -EAGAIN;
	default:
		return -ENODEV;
	}
}

int veil_enclave_ask(enum veil_enclave_call call, const struct veil_pages *pages, const void *body, size_t length,
		     void *answer, size_t room, size_t *answered)
{
	struct veil_request request = {
		.service = VEIL_ENC_SERVICE,
		.call = call,
		.pages = pages,
		.head = body,
		.head_length = length,
		.answer = answer,
		.room = room,
	};
	int error = error_of(veil_ask_or_wait(&request, wait_for_host));

	if (!error && request.answer_length > room)
		error = -EPROTO;
	if (!error && answered)
		*answered = request.answer_length;
	return error;
}
