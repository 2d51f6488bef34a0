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

struct veil_pages *veil_pages_new(size_t length)
{
	size_t count = DIV_ROUND_UP_ULL(length, PAGE_SIZE);
	struct veil_pages *pages;

	if (!length)
		return ERR_PTR(-EINVAL);
	if (length > (size_t)VEIL_MAX_PAGES * PAGE_SIZE)
		return ERR_PTR(-E2BIG);
	pages = kvmalloc(struct_size(pages, gpas, count), GFP_KERNEL);
	if (!pages)
		return ERR_PTR(-ENOMEM);
	pages->count = 0;
	return pages;
}

int veil_pages_add(struct veil_pages *pages, const void *buffer, size_t length)
{
	size_t at;

	if (!PAGE_ALIGNED(buffer))
		return -EINVAL;
	for (at = 0; at < length; at += PAGE_SIZE) {
		struct page *page = page_of(buffer + at);

		if (!page)
			return -EFAULT;
		pages->gpas[pages->count++] = PFN_PHYS(page_to_pfn(page));
	}
	return 0;
}

struct veil_pages *veil_pages_of(const void *buffer, size_t length)
{
	struct veil_pages *pages = veil_pages_new(length);
	int error;

	if (IS_ERR(pages))
		return pages;
	error = veil_pages_add(pages, buffer, length);
	if (!error)
		return pages;
	kvfree(pages);
	return ERR_PTR(error);
}
