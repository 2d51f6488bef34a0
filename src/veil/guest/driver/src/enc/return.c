// SPDX-License-Identifier: GPL-2.0
/* Pages of enclaves come back: VeilS-ENC wants them when the enclave's runtime asks about a page fault there. */
#include <linux/atomic.h>
#include <linux/err.h>
#include <linux/mm.h>
#include <linux/slab.h>

#include "../pages.h"
#include "enc.h"

/* So many come at once to a thread that goes through memory page by page: each time costs domain switches. */
#define MOST_AHEAD 64u

struct return_request {
	u32 enclave;
	u32 reserved;
	u64 addresses[];
};

static atomic64_t returned, return_requests;

static int give_back(struct veil_enclave *enclave, struct return_request *request, size_t count)
{
	struct veil_pages *pages = veil_enclave_allocate_again(enclave, count);
	size_t at;
	int error = 0;

	if (IS_ERR(pages))
		return PTR_ERR(pages);
	for (at = 0; at < count && !error; at++)
		error = veil_enclave_read_away(enclave, request->addresses[at], veil_enclave_page(pages, at));
	if (error) {
		veil_enclave_free_pages(enclave, pages);
		return error;
	}
	request->enclave = enclave->number;
	atomic64_inc(&return_requests);
	error = veil_enclave_ask(VEIL_ENCLAVE_CALL_RETURN, pages, request, struct_size(request, addresses, count), NULL,
				 0, NULL);
	kvfree(pages);
	if (error)
		return error;
	for (at = 0; at < count; at++)
		veil_enclave_forget_away(enclave, request->addresses[at]);
	atomic64_add(count, &returned);
	return 0;
}

static int return_ahead(struct veil_enclave *enclave, struct veil_enclave_slot *slot, u64 address)
{
	struct return_request *request = kzalloc(struct_size(request, addresses, MOST_AHEAD), GFP_KERNEL);
	size_t count = 0;
	int error;

	if (!request)
		return -ENOMEM;
	slot->ahead = address == slot->next ? clamp(slot->ahead * 2, 4u, MOST_AHEAD) : 1;
	while (count < slot->ahead && veil_enclave_is_away(enclave, address)) {
		request->addresses[count++] = address;
		address += PAGE_SIZE;
	}
	slot->next = address;
	error = give_back(enclave, request, count);
	kfree(request);
	return error;
}

int veil_enclave_return(struct veil_enclave *enclave, u32 slot, u64 address)
{
	long error;

	mutex_lock(&enclave->lock);
	if (veil_enclave_is_away(enclave, address))
		error = return_ahead(enclave, &enclave->slots[slot], address);
	else
		/* Another slot has had it returned; or the host let the service encrypt it, and not give it yet. */
		error = min(veil_enclave_reclaim(enclave, 1), 0l);
	mutex_unlock(&enclave->lock);
	return error;
}

void veil_enclave_return_state(struct veil_paging_state *state)
{
	state->returned = atomic64_read(&returned);
	state->requests += atomic64_read(&return_requests);
}
