// SPDX-License-Identifier: GPL-2.0
/* Pages of enclaves go to the kernel: VeilS-ENC chooses and encrypts them. */
#include <linux/atomic.h>
#include <linux/mm.h>
#include <linux/slab.h>

#include "enc.h"

/* veil/formats/enclave_calls.py. */
#define PAGED_AT_ONCE 512

struct reclaim_request {
	u32 enclave;
	u32 pages;
};

struct reclaimed_page {
	u64 address;
	u64 gpa;
};

static atomic64_t reclaimed, reclaim_requests;

long veil_enclave_reclaim(struct veil_enclave *enclave, size_t count)
{
	struct reclaim_request request = { enclave->number, min_t(size_t, count, PAGED_AT_ONCE) };
	struct reclaimed_page *pages = kvmalloc_array(PAGED_AT_ONCE, sizeof(*pages), GFP_KERNEL);
	size_t length, at, got;
	int error;

	if (!pages)
		return -ENOMEM;
	atomic64_inc(&reclaim_requests);
	error = veil_enclave_ask(VEIL_ENCLAVE_CALL_RECLAIM, NULL, &request, sizeof(request), pages,
				 PAGED_AT_ONCE * sizeof(*pages), &length);
	got = error ? 0 : length / sizeof(*pages);
	for (at = 0; at < got; at++) {
		struct page *page = veil_enclave_detach(enclave, pages[at].gpa);

		if (page)
			veil_enclave_keep_away(enclave, pages[at].address, page);
		else
			pr_err("veil: enclave %u never had the page at %#llx\n", enclave->number, pages[at].gpa);
	}
	atomic64_add(got, &reclaimed);
	kvfree(pages);
	return error ? error : got;
}

void veil_enclave_reclaim_state(struct veil_paging_state *state)
{
	state->reclaimed = atomic64_read(&reclaimed);
	state->requests += atomic64_read(&reclaim_requests);
}
