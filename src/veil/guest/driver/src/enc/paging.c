// SPDX-License-Identifier: GPL-2.0
/*
 * Pages that the kernel takes back from enclaves: VeilS-ENC chooses and encrypts them, and wants them again when the
 * enclave's runtime asks about a page fault there. What they held is kept in a file of shared memory, which may be swapped.
 */
#include <linux/atomic.h>
#include <linux/err.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/sched/signal.h>
#include <linux/shmem_fs.h>
#include <linux/slab.h>

#include "../pages.h"
#include "enc.h"

/* veil/formats/enclave_calls.py: RECLAIM_PAGES. */
#define RECLAIM_PAGES 15

/* Newer kernels have a structure for the flags of a mapping, and newer ones yet take it here. */
#ifdef mk_vma_flags
#define NO_RESERVE                                                                                                     \
	_Generic(&shmem_kernel_file_setup,                                                                             \
		struct file * (*)(const char *, loff_t, unsigned long): VM_NORESERVE,                                  \
		default: mk_vma_flags(VMA_NORESERVE_BIT))
#else
#define NO_RESERVE VM_NORESERVE
#endif

struct reclaim_request {
	u32 enclave;
	u32 pages;
	u64 address;
};

struct reclaimed_page {
	u64 address;
	u64 gpa;
};

struct return_request {
	u32 enclave;
	u32 reserved;
	u64 address;
};

#define LARGEST_ANSWER (sizeof(u64) + RECLAIM_PAGES * (sizeof(struct reclaimed_page) + PAGE_SIZE))

static LIST_HEAD(enclaves);
static DEFINE_MUTEX(lock);
static atomic64_t reclaimed;

u64 veil_enclave_reclaimed(void)
{
	return atomic64_read(&reclaimed);
}

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
	if (enclave->store)
		fput(enclave->store);
	enclave->store = NULL;
}

static int keep(struct veil_enclave *enclave, u64 address, const void *content)
{
	loff_t at = address;
	ssize_t written = kernel_write(enclave->store, content, PAGE_SIZE, &at);

	return written == PAGE_SIZE ? 0 : written < 0 ? written : -ENOSPC;
}

/* Gives how many pages. `address` goes on behind the last. */
static int reclaim_some(struct veil_enclave *enclave, size_t count, u64 *address, u64 *answer)
{
	struct reclaim_request request = { enclave->number, min_t(size_t, count, RECLAIM_PAGES), *address };
	const struct reclaimed_page *pages = (void *)(answer + 1);
	size_t length, at;
	int error = veil_enclave_ask(VEIL_ENCLAVE_CALL_RECLAIM, NULL, &request, sizeof(request), answer, LARGEST_ANSWER,
				     &length);

	if (error)
		return error;
	if (length < sizeof(*answer) || *answer > RECLAIM_PAGES ||
	    length != sizeof(*answer) + *answer * (sizeof(*pages) + PAGE_SIZE))
		return -EPROTO;
	for (at = 0; at < *answer; at++) {
		error = keep(enclave, pages[at].address, (void *)&pages[*answer] + at * PAGE_SIZE);
		/* The page is the kernel's, and lost to the enclave if what was in it is. */
		if (error)
			pr_err("veil: enclave %u loses its page at %#llx (%d)\n", enclave->number, pages[at].address,
			       error);
		veil_enclave_free_page(enclave, pages[at].gpa);
		*address = pages[at].address + PAGE_SIZE;
	}
	atomic64_add(*answer, &reclaimed);
	return *answer;
}

static int reclaim(struct veil_enclave *enclave, size_t count, u64 *answer)
{
	u64 address = 0;
	size_t done = 0;
	int some = 1;

	if (!enclave->store) {
		struct file *store = shmem_kernel_file_setup("veil-enclave", VEIL_ENC_TOP, NO_RESERVE);

		if (IS_ERR(store))
			return PTR_ERR(store);
		/* Addresses are offsets. */
		store->f_flags |= O_LARGEFILE;
		enclave->store = store;
	}
	while (done < count && some > 0 && !fatal_signal_pending(current)) {
		some = reclaim_some(enclave, count - done, &address, answer);
		done += max(some, 0);
		cond_resched();
	}
	return some < 0 ? some : done;
}

int veil_enclaves_reclaim(size_t count)
{
	void *answer = kvmalloc(LARGEST_ANSWER, GFP_KERNEL);
	struct veil_enclave *enclave;
	size_t done = 0;
	int some = 0;

	if (!answer)
		return -ENOMEM;
	mutex_lock(&lock);
	list_for_each_entry(enclave, &enclaves, list)
	{
		if (done == count)
			break;
		mutex_lock(&enclave->lock);
		some = reclaim(enclave, count - done, answer);
		mutex_unlock(&enclave->lock);
		if (some < 0)
			break;
		done += some;
	}
	mutex_unlock(&lock);
	kvfree(answer);
	return done ? done : some;
}

int veil_enclave_return(struct veil_enclave *enclave, u64 address)
{
	struct return_request request = { enclave->number, 0, address };
	struct veil_pages *pages;
	loff_t at = address;
	ssize_t got;
	int error;

	mutex_lock(&enclave->lock);
	pages = enclave->store ? veil_enclave_allocate(enclave, 1) : ERR_PTR(-ENODATA);
	error = PTR_ERR_OR_ZERO(pages);
	if (!error) {
		got = kernel_read(enclave->store, veil_enclave_page(pages, 0), PAGE_SIZE, &at);
		error = got == PAGE_SIZE ? 0 : got < 0 ? got : -ENODATA;
	}
	if (!error)
		error = veil_enclave_ask(VEIL_ENCLAVE_CALL_RETURN, pages, &request, sizeof(request), NULL, 0, NULL);
	if (!error)
		vfs_fallocate(enclave->store, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, address, PAGE_SIZE);
	mutex_unlock(&enclave->lock);
	/* Another slot had it returned: the service says what is missing now. */
	return error;
}
