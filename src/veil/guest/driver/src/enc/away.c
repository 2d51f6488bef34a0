// SPDX-License-Identifier: GPL-2.0
/*
 * What is in pages of enclaves that the kernel has for a while, encrypted by VeilS-ENC: it is kept in a file of shared
 * memory, which is swapped as all such memory is; or, while that has no room, where it is.
 */
#include <linux/err.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/shmem_fs.h>

#include "enc.h"

/* Newer kernels have a structure for the flags of a mapping, and newer ones yet take it here. */
#ifdef mk_vma_flags
#define NO_RESERVE                                                                                                     \
	_Generic(&shmem_kernel_file_setup,                                                                             \
		struct file * (*)(const char *, loff_t, unsigned long): VM_NORESERVE,                                  \
		default: mk_vma_flags(VMA_NORESERVE_BIT))
#else
#define NO_RESERVE VM_NORESERVE
#endif

/* In `enclave->away`: it is in the file. Anything else is the page itself. */
#define IN_FILE xa_mk_value(1)

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

void veil_enclave_keep_away(struct veil_enclave *enclave, u64 address, struct page *page)
{
	void *before;

	/* A few words, without which the enclave would not get its page again. */
	if (write_to_file(enclave, address, page)) {
		before = xa_store(&enclave->away, address >> PAGE_SHIFT, IN_FILE, GFP_KERNEL | __GFP_NOFAIL);
		put_page(page);
	} else {
		before = xa_store(&enclave->away, address >> PAGE_SHIFT, page, GFP_KERNEL | __GFP_NOFAIL);
	}
	if (before && before != IN_FILE)
		put_page(before);
}

bool veil_enclave_is_away(struct veil_enclave *enclave, u64 address)
{
	return xa_load(&enclave->away, address >> PAGE_SHIFT) != NULL;
}

int veil_enclave_read_away(struct veil_enclave *enclave, u64 address, void *to)
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

void veil_enclave_forget_away(struct veil_enclave *enclave, u64 address)
{
	struct page *page = xa_erase(&enclave->away, address >> PAGE_SHIFT);

	if (page == IN_FILE)
		vfs_fallocate(enclave->store, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, address, PAGE_SIZE);
	else if (page)
		put_page(page);
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
