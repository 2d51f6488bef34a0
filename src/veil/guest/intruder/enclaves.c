// SPDX-License-Identifier: GPL-2.0
/*
 * What an intruder in the kernel tries against enclaves, with all that the kernel knows of them: which pages they have, from
 * the driver's own lists. In /sys/module/intruder/parameters
 *	search	bytes, in hexadecimal digits, are looked for in all memory that the kernel has; then it says how often they are
 *		there
 *	touch	"read" or "write", and an enclave's number: a page of that one
 */
#include <linux/bitmap.h>
#include <linux/hex.h>
#include <linux/kernel.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pfn.h>
#include <linux/sched.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>

#include "enc/enc.h"
#include "intruder.h"
#include "pages.h"

#define LONGEST 64

/* Each bit turned over, so that the search does not find what it looks for in its own order. */
static u8 wanted[LONGEST];
static size_t length;
static struct {
	unsigned long searched, enclaves, found;
} result;

static bool is_window(const struct veil_enclave *enclave, u64 gpa)
{
	u32 slot, at;

	for (slot = 0; slot < enclave->slot_count; slot++)
		for (at = 0; enclave->slots[slot].window && at < enclave->slots[slot].window->count; at++)
			if (enclave->slots[slot].window->gpas[at] == gpa)
				return true;
	return false;
}

/* What is told of each page: false ends it. */
typedef bool (*page_function)(u64 gpa, void *argument);

static bool each_page_of(struct veil_enclave *enclave, page_function function, void *argument)
{
	unsigned long pfn;
	void *entry;

	xa_for_each(&enclave->pages, pfn, entry)
	{
		u64 gpa = PFN_PHYS(pfn);

		if (!is_window(enclave, gpa) && !function(gpa, argument))
			return false;
	}
	return true;
}

/* Each page that is an enclave's, and not the kernel's too. */
static void each_page(page_function function, void *argument)
{
	struct list_head *enclaves = intruder_lookup("veil:enclaves");
	struct veil_enclave *enclave;

	if (!enclaves)
		return;
	list_for_each_entry(enclave, enclaves, list)
	{
		if (!each_page_of(enclave, function, argument))
			return;
	}
}

static bool mark(u64 gpa, void *argument)
{
	set_bit(PHYS_PFN(gpa), argument);
	return true;
}

static bool is_there(const u8 *at)
{
	size_t i;

	for (i = 0; i < length; i++)
		if ((at[i] ^ wanted[i]) != 0xff)
			return false;
	return true;
}

static void search_page(const u8 *page)
{
	const u8 first = ~wanted[0], *at, *end = page + PAGE_SIZE - length;
	u64 word;

	/* Not all of it is mapped. */
	if (copy_from_kernel_nofault(&word, page, sizeof(word)))
		return;
	result.searched++;
	if (!memchr_inv(page, 0, PAGE_SIZE))
		return;
	for (at = page; at <= end; at++)
		if (*at == first && is_there(at))
			result.found++;
}

/* What the kernel shares with the host in its own image is there only where the image is mapped. */
static const u8 *mapping_of(unsigned long pfn, const u8 *shared, const u8 *end)
{
	u64 physical = PFN_PHYS(pfn);

	if (shared && end && physical >= __pa(shared) && physical < __pa(end))
		return shared + (physical - __pa(shared));
	return __va(physical);
}

static int search(void)
{
	const u8 *shared = intruder_lookup("__start_bss_decrypted"), *end = intruder_lookup("__end_bss_decrypted");
	unsigned long *pages_end = intruder_lookup("max_pfn"), *skipped, pfn;

	skipped = pages_end ? vzalloc(BITS_TO_LONGS(*pages_end) * sizeof(long)) : NULL;
	if (!skipped)
		return -ENOMEM;
	memset(&result, 0, sizeof(result));
	each_page(mark, skipped);
	for (pfn = 0; pfn < *pages_end; pfn++) {
		if (test_bit(pfn, skipped))
			result.enclaves++;
		else if (page_is_ram(pfn) && pfn_valid(pfn))
			search_page(mapping_of(pfn, shared, end));
		if (!(pfn % 256))
			cond_resched();
	}
	vfree(skipped);
	return 0;
}

static int set_search(const char *text, const struct kernel_param *parameter)
{
	size_t digits = strcspn(text, "\n"), i;

	if (!digits || digits % 2 || digits > 2 * LONGEST || hex2bin(wanted, text, digits / 2))
		return -EINVAL;
	length = digits / 2;
	for (i = 0; i < length; i++)
		wanted[i] ^= 0xff;
	return search();
}

static int get_search(char *buffer, const struct kernel_param *parameter)
{
	return scnprintf(buffer, PAGE_SIZE, "found %lu times in %lu pages; %lu pages are enclaves'\n", result.found,
			 result.searched, result.enclaves);
}

static const struct kernel_param_ops search_operations = {
	.set = set_search,
	.get = get_search,
};
module_param_cb(search, &search_operations, NULL, 0600);

static bool take_first(u64 gpa, void *argument)
{
	*(u64 *)argument = gpa;
	return false;
}

static u64 page_of(u32 number)
{
	struct list_head *enclaves = intruder_lookup("veil:enclaves");
	struct veil_enclave *enclave;
	u64 gpa = 0;

	if (!enclaves)
		return 0;
	list_for_each_entry(enclave, enclaves, list)
	{
		if (enclave->number == number)
			each_page_of(enclave, take_first, &gpa);
	}
	return gpa;
}

static int set_touch(const char *text, const struct kernel_param *parameter)
{
	char what[8];
	u64 gpa, *page;
	u32 number;

	if (sscanf(text, "%7s %u", what, &number) != 2 || (strcmp(what, "read") != 0 && strcmp(what, "write") != 0))
		return -EINVAL;
	gpa = page_of(number);
	if (!gpa)
		return -ENOENT;
	page = __va(gpa);
	if (!strcmp(what, "write"))
		WRITE_ONCE(*page, 0x666);
	pr_info("intruder: an enclave's page at %#llx: %#llx\n", gpa, READ_ONCE(*page));
	return 0;
}

static const struct kernel_param_ops touch_operations = {
	.set = set_touch,
};
module_param_cb(touch, &touch_operations, NULL, 0200);
