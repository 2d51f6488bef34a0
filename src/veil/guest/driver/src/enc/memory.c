// SPDX-License-Identifier: GPL-2.0
/* Pages of enclaves: the kernel's own, in long runs if it has any, for one request to VeilMon names runs. */
#include <linux/err.h>
#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/pfn.h>
#include <linux/slab.h>

#include "../pages.h"
#include "enc.h"

#define LARGEST_ORDER 9

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
	return alloc_page(GFP_KERNEL_ACCOUNT | __GFP_RETRY_MAYFAIL);
}

static void free_list(struct veil_pages *pages)
{
	u32 at;

	for (at = 0; at < pages->count; at++)
		if (pages->gpas[at])
			put_page(pfn_to_page(PHYS_PFN(pages->gpas[at])));
	kvfree(pages);
}

void veil_enclave_free_page(struct veil_enclave *enclave, u64 gpa)
{
	struct veil_enclave_pages *held;
	u32 at;

	list_for_each_entry(held, &enclave->pages, list)
	{
		for (at = 0; at < held->pages->count; at++) {
			if (held->pages->gpas[at] == gpa) {
				held->pages->gpas[at] = 0;
				put_page(pfn_to_page(PHYS_PFN(gpa)));
				return;
			}
		}
	}
}

struct veil_pages *veil_enclave_allocate(struct veil_enclave *enclave, size_t count)
{
	struct veil_enclave_pages *held = kmalloc(sizeof(*held), GFP_KERNEL);
	struct veil_pages *pages = veil_pages_new(count * PAGE_SIZE);

	if (IS_ERR(pages) || !held) {
		kfree(held);
		if (!IS_ERR(pages))
			kvfree(pages);
		return ERR_PTR(-ENOMEM);
	}
	while (pages->count < count) {
		unsigned int order, at;
		struct page *page = allocate_run(count - pages->count, &order);

		if (!page) {
			free_list(pages);
			kfree(held);
			return ERR_PTR(-ENOMEM);
		}
		for (at = 0; at < 1u << order; at++)
			pages->gpas[pages->count++] = PFN_PHYS(page_to_pfn(page + at));
	}
	held->pages = pages;
	list_add(&held->list, &enclave->pages);
	return pages;
}

void veil_enclave_free(struct veil_enclave *enclave)
{
	struct veil_enclave_pages *held, *next;

	list_for_each_entry_safe(held, next, &enclave->pages, list)
	{
		list_del(&held->list);
		free_list(held->pages);
		kfree(held);
	}
}

void *veil_enclave_page(const struct veil_pages *pages, size_t at)
{
	return page_address(pfn_to_page(PHYS_PFN(pages->gpas[at])));
}
