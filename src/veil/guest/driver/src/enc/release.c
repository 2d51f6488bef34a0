// SPDX-License-Identifier: GPL-2.0
/*
 * The end of an enclave. The service gives back what it has of it; a page that the host does not let go stays with the service,
 * and all others are the kernel's again. What could not be given is asked for again from time to time, until there is nothing.
 */
#include <linux/atomic.h>
#include <linux/delay.h>
#include <linux/errno.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/pfn.h>
#include <linux/printk.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/workqueue.h>

#include "enc.h"

#define RELEASE_TRIES 100
#define RELEASE_PAUSE_MS 10
#define AGAIN_SECONDS 5
/* veil/formats/enclave_calls.py: KEPT_PAGES. */
#define KEPT_PAGES 64

/* Pages that are still to be given, and those that the host keeps. */
struct released {
	u32 left;
	u32 kept;
	u64 pages[KEPT_PAGES];
};

static void try_again(struct work_struct *work);
static LIST_HEAD(stuck);
static DEFINE_MUTEX(stuck_lock);
static DECLARE_DELAYED_WORK(again, try_again);
static atomic_t stuck_count;

int veil_enclaves_stuck(void)
{
	return atomic_read(&stuck_count);
}

static bool is_kept(const struct released *released, u64 gpa)
{
	u32 at;

	for (at = 0; at < released->kept; at++)
		if (released->pages[at] == gpa)
			return true;
	return false;
}

/* The service has said of all others that they are the kernel's. If it lies the kernel is at its end, as it could be anyway. */
static void free_others(struct veil_enclave *enclave, const struct released *released)
{
	unsigned long pfn;
	void *entry;

	xa_for_each(&enclave->pages, pfn, entry) if (!is_kept(released, PFN_PHYS(pfn)))
		put_page(veil_enclave_detach(enclave, PFN_PHYS(pfn)));
}

/* 0: nothing is left. -EBUSY: some pages are; other errors: all of them. */
static int release(struct veil_enclave *enclave, int tries)
{
	struct released *released = kzalloc(sizeof(*released), GFP_KERNEL);
	int error = released ? 0 : -ENOMEM;
	size_t length;

	while (!error) {
		error = veil_enclave_ask(VEIL_ENCLAVE_CALL_DESTROY, NULL, &enclave->number, sizeof(enclave->number),
					 released, sizeof(*released), &length);
		if (!error && (length < offsetof(struct released, pages) || released->kept > KEPT_PAGES ||
			       length != offsetof(struct released, pages) + released->kept * sizeof(u64)))
			error = -EPROTO;
		if (!error && !released->left)
			break;
		if (error == -EAGAIN && --tries > 0) {
			msleep(RELEASE_PAUSE_MS);
			error = 0;
		}
		cond_resched();
	}
	if (!error) {
		free_others(enclave, released);
		error = released->kept ? -EBUSY : 0;
	}
	kfree(released);
	return error;
}

static void forget(struct veil_enclave *enclave)
{
	u32 slot;

	veil_enclave_free(enclave);
	veil_enclave_user_end(enclave);
	for (slot = 0; slot < ARRAY_SIZE(enclave->slots); slot++)
		kvfree(enclave->slots[slot].window);
	kfree(enclave);
}

static void look_later(void)
{
	schedule_delayed_work(&again, AGAIN_SECONDS * HZ);
}

static void try_again(struct work_struct *work)
{
	struct veil_enclave *enclave, *next;
	bool some;

	mutex_lock(&stuck_lock);
	list_for_each_entry_safe(enclave, next, &stuck, list)
	{
		if (release(enclave, 1))
			continue;
		list_del(&enclave->list);
		atomic_dec(&stuck_count);
		forget(enclave);
	}
	some = !list_empty(&stuck);
	mutex_unlock(&stuck_lock);
	if (some)
		look_later();
}

void veil_enclave_destroy(struct veil_enclave *enclave)
{
	int error = enclave->created ? release(enclave, RELEASE_TRIES) : 0;

	if (!error) {
		forget(enclave);
		return;
	}
	/* They cannot be used by anybody. */
	pr_err("veil: enclave %u keeps %ld pages (%d): they are asked for again\n", enclave->number,
	       enclave->page_count, error);
	mutex_lock(&stuck_lock);
	list_add_tail(&enclave->list, &stuck);
	atomic_inc(&stuck_count);
	mutex_unlock(&stuck_lock);
	look_later();
}

void veil_enclaves_release_end(void)
{
	cancel_delayed_work_sync(&again);
}
