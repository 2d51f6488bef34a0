// SPDX-License-Identifier: GPL-2.0
/*
 * Pages of enclaves that the kernel has for a while: VeilS-ENC chooses and encrypts them, and wants them again when the
 * enclave's runtime asks about a page fault there. What is in them is kept in a file of shared memory, which is swapped as
 * all such memory is; or, while that has no room, where it is.
 */
#include <linux/atomic.h>
#include <linux/err.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/shmem_fs.h>
#include <linux/slab.h>

#include "../pages.h"
#include "enc.h"

/* veil/formats/enclave_calls.py. */
#define PAGED_AT_ONCE 512
/* So many come at once to a thread that goes through memory page by page: each time costs domain switches. */
#define MOST_AHEAD 64u

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
};

struct reclaimed_page {
	u64 address;
	u64 gpa;
};

struct return_request {
	u32 enclave;
	u32 reserved;
	u64 addresses[];
};

/* In `enclave->away`: it is in the file. Anything else is the page itself. */
#define IN_FILE xa_mk_value(1)

static atomic64_t reclaimed, returned, requests;

void veil_enclave_paging_state(struct veil_paging_state *state)
{
	state->reclaimed = atomic64_read(&reclaimed);
	state->returned = atomic64_read(&returned);
	state->requests = atomic64_read(&requests);
}

void veil_enclave_free_away(struct veil_enclave *enclave)
{
	unsigned long index;
	void *entry;

	xa_for_each(&enclave->away, index, entry) if (entry != IN_FILE) put_page(entry);
	xa_destroy(&enclave->away);
	if (enclave->store)
		fput(enclave->store);
	enclave->store = NULL;
}

static bool write_to_file(struct veil_enclave *enclave, u64 address, struct page *page)
{
	loff_t at = address;

	if (!enclave->store) {
		struct file *store = shmem_kernel_file_setup("veil-enclave", VEIL_ENC_TOP, NO_RESERVE);

		if (IS_ERR(store))
			return false;
		/* Addresses are offsets. */
		store->f_flags |= O_LARGEFILE;
		enclave->store = store;
	}
	return kernel_write(enclave->store, page_address(page), PAGE_SIZE, &at) == PAGE_SIZE;
}

static void keep(struct veil_enclave *enclave, const struct reclaimed_page *given)
{
	struct page *page = veil_enclave_detach(enclave, given->gpa);
	void *before;

	if (!page) {
		pr_err("veil: enclave %u never had the page at %#llx\n", enclave->number, given->gpa);
		return;
	}
	/* A few words, without which the enclave would not get its page again. */
	if (write_to_file(enclave, given->address, page)) {
		before = xa_store(&enclave->away, given->address >> PAGE_SHIFT, IN_FILE, GFP_KERNEL | __GFP_NOFAIL);
		put_page(page);
	} else {
		before = xa_store(&enclave->away, given->address >> PAGE_SHIFT, page, GFP_KERNEL | __GFP_NOFAIL);
	}
	if (before && before != IN_FILE)
		put_page(before);
}

long veil_enclave_reclaim(struct veil_enclave *enclave, size_t count)
{
	struct reclaim_request request = { enclave->number, min_t(size_t, count, PAGED_AT_ONCE) };
	struct reclaimed_page *pages = kvmalloc_array(PAGED_AT_ONCE, sizeof(*pages), GFP_KERNEL);
	size_t length, at, got;
	int error;

	if (!pages)
		return -ENOMEM;
	atomic64_inc(&requests);
	error = veil_enclave_ask(VEIL_ENCLAVE_CALL_RECLAIM, NULL, &request, sizeof(request), pages,
				 PAGED_AT_ONCE * sizeof(*pages), &length);
	got = error ? 0 : length / sizeof(*pages);
	for (at = 0; at < got; at++)
		keep(enclave, &pages[at]);
	atomic64_add(got, &reclaimed);
	kvfree(pages);
	return error ? error : got;
}

static int read_back(struct veil_enclave *enclave, u64 address, void *to)
{
	struct page *page = xa_load(&enclave->away, address >> PAGE_SHIFT);
	loff_t at = address;
	ssize_t got;

	if (page != IN_FILE) {
		copy_page(to, page_address(page));
		return 0;
	}
	got = kernel_read(enclave->store, to, PAGE_SIZE, &at);
	return got == PAGE_SIZE ? 0 : got < 0 ? got : -ENODATA;
}

static void forget(struct veil_enclave *enclave, u64 address)
{
	struct page *page = xa_erase(&enclave->away, address >> PAGE_SHIFT);

	if (page == IN_FILE)
		vfs_fallocate(enclave->store, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, address, PAGE_SIZE);
	else if (page)
		put_page(page);
}

static int give_back(struct veil_enclave *enclave, struct return_request *request, size_t count)
{
	struct veil_pages *pages = veil_enclave_allocate(enclave, count);
	size_t at;
	int error = 0;

	if (IS_ERR(pages))
		return PTR_ERR(pages);
	for (at = 0; at < count && !error; at++)
		error = read_back(enclave, request->addresses[at], veil_enclave_page(pages, at));
	if (error) {
		veil_enclave_free_pages(enclave, pages);
		return error;
	}
	request->enclave = enclave->number;
	atomic64_inc(&requests);
	error = veil_enclave_ask(VEIL_ENCLAVE_CALL_RETURN, pages, request, struct_size(request, addresses, count), NULL,
				 0, NULL);
	kvfree(pages);
	if (error)
		return error;
	for (at = 0; at < count; at++)
		forget(enclave, request->addresses[at]);
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
	while (count < slot->ahead && xa_load(&enclave->away, address >> PAGE_SHIFT)) {
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
	if (xa_load(&enclave->away, address >> PAGE_SHIFT))
		error = return_ahead(enclave, &enclave->slots[slot], address);
	else
		/* Another slot has had it returned; or the host let the service encrypt it, and not give it yet. */
		error = min(veil_enclave_reclaim(enclave, 1), 0l);
	mutex_unlock(&enclave->lock);
	return error;
}
