/* SPDX-License-Identifier: GPL-2.0 */
/* Requests to the protected services. */
#ifndef VEIL_CALL_H
#define VEIL_CALL_H

#include <linux/types.h>

#include "pages.h"

/* veil/formats/request_block.py: the request block of a CPU. */
struct veil_block {
	u32 pending;
	u32 status;
	u16 service;
	u16 call;
	/* of pages by reference and body together */
	u32 length;
	/* means something in VeilMon's mailbox alone */
	u8 user[0x28];
	u32 page_count;
	/* tells a request from an earlier one that was not answered in time */
	u32 ticket;
	u8 body[];
};

#define VEIL_BLOCK_PAGES 16
#define VEIL_BODY_SIZE (VEIL_BLOCK_PAGES * 4096 - sizeof(struct veil_block))

/* veil/formats/status.py, Status. */
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

/*
 * The body is `head` and `data` together. With the pages (8 bytes each) it is at most VEIL_BODY_SIZE bytes: a longer one is
 * VEIL_BAD_REQUEST, and nobody is asked.
 */
struct veil_request {
	u16 service;
	u16 call;
	/* What the request is about, if that does not fit into a body; may be NULL. */
	const struct veil_pages *pages;
	const void *head;
	u32 head_length;
	const void *data;
	u32 data_length;
	/* Where the answer goes, if it fits into `room` bytes. */
	void *answer;
	u32 room;
	/* How long the answer was, if the status is VEIL_OK. */
	u32 answer_length;
};

/*
 * Runs a context of VMPL 2, whose VMSA is the page at this address, on this CPU until it leaves or an interrupt comes. What
 * the host answers is VEIL_RAN_CONTEXT, or why the context does not run (veil/formats/ghcb.py).
 */
#define VEIL_RAN_CONTEXT 0x017
u64 veil_run_context(u64 vmsa);

int veil_call_begin(void);
void veil_call_end(void);

/* Once. */
enum veil_status veil_ask(struct veil_request *request);

/*
 * Until it is answered with VEIL_OK, or `wait` (the service's policy) says that waiting would change nothing. Whoever
 * asks waits here, and does not sleep.
 */
enum veil_status veil_ask_or_wait(struct veil_request *request, bool (*wait)(enum veil_status status));

#endif
