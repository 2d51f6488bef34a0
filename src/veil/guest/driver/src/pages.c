// SPDX-License-Identifier: GPL-2.0
/* The list of the pages that a buffer has. VeilMon checks each against its page book; no check here protects anybody. */
#include <linux/err.h>
#include <linux/mm.h>
#include <linux/overflow.h>
#include <linux/pfn.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "pages.h"

static struct page *page_of(const void *address)
{
	unsigned long at = (unsigned long)address;

	if (is_vmalloc_addr(address) || (at >= MODULES_VADDR && at < MODULES_END)) {
		struct page *page = vmalloc_to_page(address);

		/* What is mapped there may be a device's registers. */
		return page && pfn_valid(page_to_pfn(page)) ? page : NULL;
	}
	return virt_addr_valid(address) ? virt_to_page(address) : NULL;
}

struct veil_pages *veil_pages_of(const void *buffer, size_t length)
{
	size_t i, count = DIV_ROUND_UP_ULL(length, PAGE_SIZE);
	struct veil_pages *pages;

	if (!length || !PAGE_ALIGNED(buffer))
		return ERR_PTR(-EINVAL);
	if (length > (size_t)VEIL_MAX_PAGES * PAGE_SIZE)
		return ERR_PTR(-E2BIG);
	pages = kvmalloc(struct_size(pages, gpas, count), GFP_KERNEL);
	if (!pages)
		return ERR_PTR(-ENOMEM);
	pages->count = count;
	for (i = 0; i < count; i++) {
		struct page *page = page_of(buffer + i * PAGE_SIZE);

		if (!page) {
			kvfree(pages);
			return ERR_PTR(-EFAULT);
		}
		pages->gpas[i] = PFN_PHYS(page_to_pfn(page));
	}
	return pages;
}
