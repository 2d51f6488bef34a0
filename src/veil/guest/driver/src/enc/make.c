// SPDX-License-Identifier: GPL-2.0
/* How an enclave is made and unmade. Nothing here is trusted: VeilS-ENC looks at all that it gets. */
#include <linux/err.h>
#include <linux/mm.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "../pages.h"
#include "enc.h"

/* The start of a packed layout, of which the service makes sure; here is what the driver must bring. */
struct layout_start {
	u8 before[0x0c];
	u32 slots;
	u8 between[0x20];
	u32 window_pages;
	u32 records;
};

#define RECORD_SIZE 72
#define LAYOUT_START 0x40
#define LARGEST_LAYOUT (LAYOUT_START + VEIL_ENC_MAX_RECORDS * RECORD_SIZE)

struct created {
	u32 enclave;
	u32 reserved;
	u64 pages;
};

struct add_request {
	u32 enclave;
	u32 record;
	u64 page;
};

struct finished {
	u8 measurement[48];
	u64 contexts[VEIL_ENC_MAX_SLOTS];
};

int veil_enclave_donate(struct veil_enclave *enclave, u64 count)
{
	while (count) {
		size_t some = min_t(u64, count, VEIL_ENC_CONTENT_PAGES);
		struct veil_pages *pages = veil_enclave_allocate(enclave, some);
		int error;

		if (IS_ERR(pages))
			return PTR_ERR(pages);
		error = veil_enclave_ask(VEIL_ENCLAVE_CALL_DONATE, pages, &enclave->number, sizeof(enclave->number),
					 NULL, 0, NULL);
		kvfree(pages);
		if (error)
			return error;
		count -= some;
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
	}
	return 0;
}

static int give_window(struct veil_enclave *enclave, u32 slot)
{
	u32 body[] = { enclave->number, slot };
	struct veil_pages *pages = veil_enclave_allocate(enclave, enclave->window_pages);
	int error;
	u32 at;

	if (IS_ERR(pages))
		return PTR_ERR(pages);
	/* The process will see them. */
	for (at = 0; at < pages->count; at++)
		clear_page(veil_enclave_page(pages, at));
	error = veil_enclave_ask(VEIL_ENCLAVE_CALL_WINDOW, pages, body, sizeof(body), NULL, 0, NULL);
	if (error)
		kvfree(pages);
	else
		enclave->slots[slot].window = pages;
	return error;
}

static int create(struct veil_enclave *enclave, const void *layout, size_t length)
{
	const struct layout_start *start = layout;
	struct created created = {};
	u32 slot;
	int error = veil_enclave_count(enclave);

	if (error)
		return error;
	error = veil_enclave_ask(VEIL_ENCLAVE_CALL_CREATE, NULL, layout, length, &created, sizeof(created), NULL);
	if (error)
		return error;
	enclave->created = true;
	enclave->number = created.enclave;
	/* As the service has read them: it refuses other numbers. */
	enclave->slot_count = start->slots;
	enclave->window_pages = start->window_pages;
	error = veil_enclave_donate(enclave, created.pages);
	for (slot = 0; slot < enclave->slot_count && !error; slot++)
		error = give_window(enclave, slot);
	return error;
}

int veil_enclave_create(struct veil_enclave *enclave, struct veil_enclave_create *asked)
{
	void *layout;
	int error;

	if (enclave->created)
		return -EINVAL;
	if (asked->length < LAYOUT_START || asked->length > LARGEST_LAYOUT)
		return -EINVAL;
	layout = kvmalloc(asked->length, GFP_KERNEL);
	if (!layout)
		return -ENOMEM;
	error = copy_from_user(layout, u64_to_user_ptr(asked->layout), asked->length) ? -EFAULT : 0;
	if (!error)
		error = create(enclave, layout, asked->length);
	kvfree(layout);
	asked->enclave = enclave->number;
	return error;
}

static int add_some(struct veil_enclave *enclave, u32 record, u64 page, const void __user *from, size_t count)
{
	struct add_request body = { enclave->number, record, page };
	struct veil_pages *pages = veil_enclave_allocate(enclave, count);
	size_t at;
	int error;

	if (IS_ERR(pages))
		return PTR_ERR(pages);
	for (at = 0; at < count; at++) {
		if (copy_from_user(veil_enclave_page(pages, at), from + at * PAGE_SIZE, PAGE_SIZE)) {
			veil_enclave_free_pages(enclave, pages);
			return -EFAULT;
		}
	}
	error = veil_enclave_ask(VEIL_ENCLAVE_CALL_ADD, pages, &body, sizeof(body), NULL, 0, NULL);
	kvfree(pages);
	return error;
}

int veil_enclave_add(struct veil_enclave *enclave, const struct veil_enclave_add *add)
{
	u64 done = 0;
	int error = 0;

	if (!enclave->created || enclave->finished || enclave->failed || add->record >= VEIL_ENC_MAX_RECORDS)
		return -EINVAL;
	while (done < add->pages && !error) {
		size_t some = min_t(u64, add->pages - done, VEIL_ENC_CONTENT_PAGES);

		error = add_some(enclave, add->record, add->page + done, u64_to_user_ptr(add->from) + done * PAGE_SIZE,
				 some);
		done += some;
		if (!error && fatal_signal_pending(current))
			error = -EINTR;
		cond_resched();
	}
	enclave->failed = error;
	return error;
}

int veil_enclave_finish(struct veil_enclave *enclave, struct veil_enclave_finish *finish)
{
	struct finished *finished;
	size_t length, expected = sizeof(finished->measurement) + enclave->slot_count * sizeof(u64);
	u32 slot;
	int error;

	if (!enclave->created || enclave->finished)
		return -EINVAL;
	finished = kzalloc(sizeof(*finished), GFP_KERNEL);
	if (!finished)
		return -ENOMEM;
	error = veil_enclave_ask(VEIL_ENCLAVE_CALL_FINISH, NULL, &enclave->number, sizeof(enclave->number), finished,
				 sizeof(*finished), &length);
	if (!error && length != expected)
		error = -EPROTO;
	if (!error) {
		memcpy(finish->measurement, finished->measurement, sizeof(finish->measurement));
		for (slot = 0; slot < enclave->slot_count; slot++)
			enclave->slots[slot].context = finished->contexts[slot];
		/* Whoever sees it sees the contexts. */
		smp_store_release(&enclave->finished, true);
	}
	kfree(finished);
	return error;
}
