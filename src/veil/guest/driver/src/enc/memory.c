// SPDX-License-Identifier: GPL-2.0
/* Pages of enclaves: the kernel's own, in long runs if it has any, for one request to VeilMon names runs. */
#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/pfn.h>
#include <linux/slab.h>

#include "../pages.h"
#include "enc.h"

#define LARGEST_ORDER 9

static atomic_long_t all_pages;

long veil_enclaves_pages(void)
{
	return atomic_long_read(&all_pages);
}

/* Not at any price: whoever has too little memory for an enclave takes pages back from another one, or from itself. */
static struct page *allocate_run(size_t most, unsigned int *order)
{
	*order = min_t(unsigned int, LARGEST_ORDER, ilog2(most));
	for (; *order; (*order)--) {
		struct page *page = alloc_pages(GFP_KERNEL_ACCOUNT | __GFP_NORETRY | __GFP_NOWARN, *order);

		if (page) {
			/* From here on they are pages of their own. */
			split_page(page, *order);
			return page;
		}
	}
	return alloc_page(GFP_KERNEL_ACCOUNT | __GFP_RETRY_MAYFAIL | __GFP_NOWARN);
}

struct page *veil_enclave_detach(struct veil_enclave *enclave, u64 gpa)
{
	if (!xa_erase(&enclave->pages, PHYS_PFN(gpa)))
		return NULL;
	WRITE_ONCE(enclave->page_count, enclave->page_count - 1);
	atomic_long_dec(&all_pages);
	return pfn_to_page(PHYS_PFN(gpa));
}

static bool attach(struct veil_enclave *enclave, struct page *page)
{
	if (xa_insert(&enclave->pages, page_to_pfn(page), xa_mk_value(0), GFP_KERNEL))
		return false;
	WRITE_ONCE(enclave->page_count, enclave->page_count + 1);
	atomic_long_inc(&all_pages);
	return true;
}

void veil_enclave_free_pages(struct veil_enclave *enclave, struct veil_pages *pages)
{
	u32 at;

	for (at = 0; at < pages->count; at++) {
		struct page *page = veil_enclave_detach(enclave, pages->gpas[at]);

		if (page)
			put_page(page);
	}
	kvfree(pages);
}

void veil_enclave_free(struct veil_enclave *enclave)
{
	unsigned long pfn;
	void *entry;

	xa_for_each(&enclave->pages, pfn, entry) put_page(veil_enclave_detach(enclave, PFN_PHYS(pfn)));
	xa_destroy(&enclave->pages);
}

bool veil_enclave_attach_run(struct veil_enclave *enclave, struct veil_pages *pages, size_t most)
{
	unsigned int order, at;
	struct page *page = allocate_run(most, &order);

	if (!page)
		return false;
	for (at = 0; at < 1u << order; at++) {
		if (attach(enclave, page + at))
			pages->gpas[pages->count++] = PFN_PHYS(page_to_pfn(page + at));
		else
			put_page(page + at);
	}
	return true;
}

void *veil_enclave_page(const struct veil_pages *pages, size_t at)
{
	return page_address(pfn_to_page(PHYS_PFN(pages->gpas[at])));
}
