// SPDX-License-Identifier: GPL-2.0
/*
 * When pages of enclaves go, and whose: as soon as all enclaves together have more than `enc_limit` says; or, without a
 * limit, when the kernel's memory runs short and there is a place to swap. For a page that went takes as much memory as
 * before until it is swapped.
 *
 * Locks: an enclave's own, then `lock`. Who has `lock` only tries the lock of an enclave.
 */
#include <linux/atomic.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/moduleparam.h>
#include <linux/sched/signal.h>
#include <linux/shrinker.h>
#include <linux/swap.h>
#include <linux/workqueue.h>

#include "enc.h"

static unsigned int limit;
module_param_named(enc_limit, limit, uint, 0644);
MODULE_PARM_DESC(enc_limit, "MiB of memory that enclaves have together before pages of theirs are swapped; 0: as the "
			    "kernel's memory allows");

#define PAGES_OF_MIB (1 << (20 - PAGE_SHIFT))
/* So many go at once, if the limit is not a small one: each time costs domain switches. */
#define BATCH 256l
/* The least that the kernel keeps: to swap takes memory, too. */
#define RESERVE (PAGES_OF_MIB * 16l)

static LIST_HEAD(enclaves);
static DEFINE_MUTEX(lock);
static atomic_long_t wanted_back;

void veil_enclave_may_be_reclaimed(struct veil_enclave *enclave)
{
	mutex_lock(&lock);
	list_add(&enclave->list, &enclaves);
	mutex_unlock(&lock);
}

void veil_enclave_forget(struct veil_enclave *enclave)
{
	mutex_lock(&lock);
	list_del_init(&enclave->list);
	mutex_unlock(&lock);
}

/* Of those that were not tried in this round the one with the most pages. */
static struct veil_enclave *largest(u64 round)
{
	struct veil_enclave *enclave, *found = NULL;

	list_for_each_entry(enclave, &enclaves, list)
	{
		if (enclave->round != round &&
		    (!found || READ_ONCE(enclave->page_count) > READ_ONCE(found->page_count)))
			found = enclave;
	}
	return found;
}

long veil_enclaves_reclaim(struct veil_enclave *own, size_t count)
{
	static u64 round;
	struct veil_enclave *enclave;
	long done = 0, some;

	mutex_lock(&lock);
	round++;
	while (done < count && !fatal_signal_pending(current)) {
		enclave = largest(round);
		if (!enclave)
			break;
		if (enclave != own && !mutex_trylock(&enclave->lock)) {
			enclave->round = round;
			continue;
		}
		some = veil_enclave_reclaim(enclave, count - done);
		if (enclave != own)
			mutex_unlock(&enclave->lock);
		if (some <= 0)
			enclave->round = round;
		else
			done += some;
		cond_resched();
	}
	mutex_unlock(&lock);
	return done;
}

static long over_limit(long most, long count)
{
	long over = veil_enclaves_pages() + count - most;

	return over > 0 ? max(over, min(BATCH, most / 16)) : 0;
}

/* Enclaves have most of the memory, and there is hardly any left: as much goes as comes. */
static bool memory_is_short(long count)
{
	return get_nr_swap_pages() > 0 && veil_enclaves_pages() > (long)totalram_pages() / 2 &&
	       si_mem_available() < count + RESERVE;
}

void veil_enclaves_make_room(struct veil_enclave *own, size_t count)
{
	/* What went in advance, so that it goes many pages at a time. */
	static atomic_long_t ahead;
	long most = (long)READ_ONCE(limit) * PAGES_OF_MIB, left;

	if (most) {
		left = over_limit(most, count);
		if (left)
			veil_enclaves_reclaim(own, left);
	} else if (memory_is_short(count)) {
		left = atomic_long_sub_return(count, &ahead);
		if (left < 0)
			atomic_long_set(&ahead, max(left + veil_enclaves_reclaim(own, max(-left, BATCH)), 0l));
	}
}

/* What a kernel in need wants is done by somebody who may wait for memory. */
static void work(struct work_struct *unused)
{
	veil_enclaves_reclaim(NULL, atomic_long_xchg(&wanted_back, 0));
}

static DECLARE_WORK(reclaim_work, work);
static struct workqueue_struct *reclaimers;

/* Pages that went and are not swapped yet. */
static long unswapped(void)
{
	struct veil_enclave *enclave;
	long pages = 0;

	list_for_each_entry(enclave, &enclaves, list)
	{
		struct file *store = READ_ONCE(enclave->store);

		if (store)
			pages += READ_ONCE(store->f_mapping->nrpages);
	}
	return pages;
}

static unsigned long count_objects(struct shrinker *shrinker, struct shrink_control *control)
{
	long pages = min_t(long, veil_enclaves_pages(), get_nr_swap_pages());
	bool enough = true;

	if (mutex_trylock(&lock)) {
		enough = unswapped() > pages / 8;
		mutex_unlock(&lock);
	}
	/* There is enough to swap already. More of it would take as much memory, and make enclaves slow. */
	return pages > 0 && !enough ? pages : SHRINK_EMPTY;
}

static unsigned long scan_objects(struct shrinker *shrinker, struct shrink_control *control)
{
	/* At most one batch waits: what a worker cannot do in time is asked for again. */
	if (atomic_long_read(&wanted_back) < BATCH)
		atomic_long_add(control->nr_to_scan, &wanted_back);
	queue_work(reclaimers, &reclaim_work);
	return SHRINK_STOP;
}

static struct shrinker *shrinker;

int veil_enclave_pressure_begin(void)
{
	/* One of its own: the kernel's for work of any CPU has another name in some versions. */
	reclaimers = alloc_workqueue("veil-enclave", WQ_UNBOUND, 1);
	shrinker = shrinker_alloc(0, "veil-enclave");
	if (!reclaimers || !shrinker) {
		if (shrinker)
			shrinker_free(shrinker);
		if (reclaimers)
			destroy_workqueue(reclaimers);
		return -ENOMEM;
	}
	shrinker->count_objects = count_objects;
	shrinker->scan_objects = scan_objects;
	shrinker_register(shrinker);
	return 0;
}

void veil_enclave_pressure_end(void)
{
	shrinker_free(shrinker);
	cancel_work_sync(&reclaim_work);
	destroy_workqueue(reclaimers);
}
