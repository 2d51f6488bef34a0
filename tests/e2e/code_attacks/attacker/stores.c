// SPDX-License-Identifier: GPL-2.0
/* Stores to what should not be written, each in the way that its caller names. */
#include <linux/gfp.h>
#include <linux/hex.h>
#include <linux/io.h>
#include <linux/irqflags.h>
#include <linux/kernel.h>
#include <linux/mm.h>
#include <linux/string.h>
#include <linux/vmalloc.h>

#include <asm/asm.h>
#include <asm/special_insns.h>

#include "attacker.h"

#define LONGEST 16

typedef int storing(void *to, const u8 *from, size_t size);

/* clang-format off */
/* One store, as memcpy() makes it: 0 or -EFAULT. */
static int store(void *to, const u8 *from, size_t size)
{
	int error = 0;

	asm volatile("1: rep movsb\n"
		     "2:\n" _ASM_EXTABLE_TYPE_REG(1b, 2b, EX_TYPE_EFAULT_REG, %[error])
		     : [error] "+r"(error), "+D"(to), "+S"(from), "+c"(size)
		     :
		     : "memory");
	return error;
}

/* The same; the instruction's first byte is its page's last. */
static noinline int store_across(void *to, const u8 *from, size_t size)
{
	int error = 0;

	asm volatile(".balign 4096, 0x90\n"
		     ".skip 4095, 0x90\n"
		     "1: rep movsb\n"
		     "2:\n" _ASM_EXTABLE_TYPE_REG(1b, 2b, EX_TYPE_EFAULT_REG, %[error])
		     : [error] "+r"(error), "+D"(to), "+S"(from), "+c"(size)
		     :
		     : "memory");
	return error;
}

/* 8 bytes, as one. */
static int store_word(void *to, const u8 *from, size_t size)
{
	int error = 0;

	if (size != sizeof(u64))
		return -EINVAL;
	asm volatile("1: mov %[value], (%[to])\n"
		     "2:\n" _ASM_EXTABLE_TYPE_REG(1b, 2b, EX_TYPE_EFAULT_REG, %[error])
		     : [error] "+r"(error)
		     : [to] "r"(to), [value] "r"(*(const u64 *)from)
		     : "memory");
	return error;
}
/* clang-format on */

/* The kernel's own alias of all memory. */
static void *direct(unsigned long target)
{
	void *place = __va(attacker_physical(target));

	return attacker_change((unsigned long)place, _PAGE_RW, 0) ? place : NULL;
}

static void *mapped(struct page *first, struct page *second)
{
	struct page *pages[2] = { first, second };

	return vmap(pages, 2, VM_MAP, PAGE_KERNEL);
}

static struct page *page_at(unsigned long address)
{
	return pfn_to_page(attacker_physical(address) >> PAGE_SHIFT);
}

/* A fresh alias of two pages. */
static void *alias(unsigned long target)
{
	void *place = mapped(page_at(target), page_at((target & PAGE_MASK) + PAGE_SIZE));

	return place ? place + offset_in_page(target) : NULL;
}

/* A page of data, and the target's page behind it. */
static void *edge(unsigned long target)
{
	void *place = mapped(alloc_page(GFP_KERNEL | __GFP_ZERO), page_at(target));

	return place ? place + PAGE_SIZE + offset_in_page(target) : NULL;
}

/* A page table of one's own, in whose lower half the target is writable. */
static int store_by_own_tables(unsigned long target, const u8 *from, size_t size)
{
	u64 *tables = (u64 *)__get_free_pages(GFP_KERNEL | __GFP_ZERO, 2);
	unsigned long flags, before = __read_cr3();
	int error;

	if (!tables)
		return -ENOMEM;
	memcpy(tables, __va(before & CR3_ADDR_MASK & ~sme_me_mask), PAGE_SIZE);
	tables[0] = __sme_pa(tables + 512) | _PAGE_PRESENT | _PAGE_RW;
	tables[512] = __sme_pa(tables + 1024) | _PAGE_PRESENT | _PAGE_RW;
	tables[1024] = __sme_pa(tables + 1536) | _PAGE_PRESENT | _PAGE_RW;
	tables[1536] = (attacker_physical(target) & PAGE_MASK) | sme_me_mask | _PAGE_PRESENT | _PAGE_RW;
	local_irq_save(flags);
	write_cr3(__sme_pa(tables));
	error = store((void *)offset_in_page(target), from, size);
	write_cr3(before);
	local_irq_restore(flags);
	free_pages((unsigned long)tables, 2);
	return error;
}

static int store_without_wp(unsigned long target, const u8 *from, size_t size)
{
	unsigned long flags, cr0 = read_cr0();
	int error;

	local_irq_save(flags);
	asm volatile("mov %0, %%cr0" : : "r"(cr0 & ~X86_CR0_WP) : "memory");
	error = store((void *)target, from, size);
	asm volatile("mov %0, %%cr0" : : "r"(cr0) : "memory");
	local_irq_restore(flags);
	return error;
}

static const struct way {
	const char *name;
	/* Where to write for a target, and how; or all of it. */
	void *(*place)(unsigned long target);
	storing *store;
	int (*whole)(unsigned long target, const u8 *from, size_t size);
} ways[] = {
	{ "direct", direct, store },	     { "alias", alias, store },	   { "word", alias, store_word },
	{ "across", alias, store_across },   { "edge", edge, store_word }, { "tables", .whole = store_by_own_tables },
	{ "wp", .whole = store_without_wp },
};

static const struct way *find_way(const char *name)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(ways); i++)
		if (!strcmp(ways[i].name, name))
			return &ways[i];
	return NULL;
}

void attacker_store(int count, char **words)
{
	const struct way *way = find_way(words[0]);
	unsigned long target = simple_strtoul(words[1], NULL, 0);
	void *place = way && way->place ? way->place(target) : NULL;
	char *rest = words[2], *step;

	while (way && (place || way->whole) && (step = strsep(&rest, ","))) {
		char *offset = strsep(&step, ":");
		long at = simple_strtol(offset, NULL, 0);
		size_t size = step ? strlen(step) / 2 : 0;
		u8 data[LONGEST];

		if (!size || size > LONGEST || hex2bin(data, step, size))
			break;
		attacker_result(way->whole ? way->whole(target + at, data, size) : way->store(place + at, data, size));
	}
}
