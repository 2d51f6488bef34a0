// SPDX-License-Identifier: GPL-2.0
/*
 * Attacks the kernel's code from inside of the kernel: what a line that is written to /dev/attacker names; what came of it
 * is read there. All of it could be done by whoever can have verified code run with arguments of their own.
 *
 * A line is "CPU COMMAND WORDS...".
 */
#include <linux/cpumask.h>
#include <linux/fs.h>
#include <linux/hex.h>
#include <linux/io.h>
#include <linux/kernel.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>

#include <asm/pgtable.h>
#include <asm/special_insns.h>

#include "attacker.h"

#define LONGEST_LINE SZ_64K
#define MOST_WORDS 8
#define MOST_RESULTS 64

static long results[MOST_RESULTS];
static unsigned int result_count;

void attacker_result(long value)
{
	if (result_count < MOST_RESULTS)
		results[result_count++] = value;
}

static void flush(void)
{
	unsigned long cr4 = __read_cr4();

	/* Global mappings too. */
	asm volatile("mov %0, %%cr4\n\tmov %1, %%cr4" : : "r"(cr4 ^ X86_CR4_PGE), "r"(cr4) : "memory");
}

/* Page tables are data, whatever they map. */
bool attacker_change(unsigned long address, pteval_t set, pteval_t clear)
{
	unsigned int level;
	pte_t *entry = lookup_address(address, &level);

	if (!entry)
		return false;
	WRITE_ONCE(*(pteval_t *)entry, (pte_val(*entry) | set) & ~clear);
	flush();
	return true;
}

phys_addr_t attacker_physical(unsigned long address)
{
	unsigned int level;
	pte_t *entry = lookup_address(address, &level);
	unsigned long mask = level == PG_LEVEL_2M ? PMD_MASK : PAGE_MASK;

	return (pte_val(*entry) & PTE_PFN_MASK & mask) | (address & ~mask);
}

/* mov $0x666, %eax; ret */
static const u8 code[] = { 0xb8, 0x66, 0x06, 0x00, 0x00, 0xc3 };

int attacker_run(const void *place)
{
	int (*function)(void) = place;

	OPTIMIZER_HIDE_VAR(function);
	return function();
}

void attacker_put_code(void *place)
{
	memcpy(place, code, sizeof(code));
}

void *attacker_map(const char *gpa)
{
	struct page *page = pfn_to_page(simple_strtoull(gpa, NULL, 0) >> PAGE_SHIFT);
	void *place = vmap(&page, 1, VM_MAP, PAGE_KERNEL);

	attacker_change((unsigned long)place, 0, _PAGE_NX);
	return place;
}

/* "data": what a page of data holds. */
static void run_data(int count, char **words)
{
	void *place = vmalloc(PAGE_SIZE);

	attacker_put_code(place);
	attacker_change((unsigned long)place, 0, _PAGE_NX);
	attacker_result(attacker_run(place));
}

/* "user": what a page of this process holds, with SMEP off. */
static void run_user(int count, char **words)
{
	unsigned long place =
		vm_mmap(NULL, 0, PAGE_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, 0);
	unsigned long cr4 = __read_cr4();

	if (IS_ERR_VALUE(place) || copy_to_user((void __user *)place, code, sizeof(code)))
		return;
	asm volatile("mov %0, %%cr4" : : "r"(cr4 & ~(X86_CR4_SMEP | X86_CR4_SMAP)) : "memory");
	attacker_result(attacker_run((void *)place));
	asm volatile("mov %0, %%cr4" : : "r"(cr4) : "memory");
}

/* "frame GPA": what a page of guest memory holds, whoever it was given to; it is as before afterwards. */
static void run_frame(int count, char **words)
{
	void *place = attacker_map(words[0]);
	u8 before[sizeof(code)];

	memcpy(before, place, sizeof(code));
	attacker_put_code(place);
	attacker_result(attacker_run(place));
	memcpy(place, before, sizeof(code));
	vunmap(place);
}

/* "call ADDRESS" */
static void call(int count, char **words)
{
	attacker_result(attacker_run((void *)simple_strtoul(words[0], NULL, 0)));
}

/* "page": a page of data; its GPA. */
static void new_page(int count, char **words)
{
	attacker_result(virt_to_phys((void *)get_zeroed_page(GFP_KERNEL)));
}

/* "large": 2 MiB of data, aligned; their GPA. */
static void new_large_page(int count, char **words)
{
	attacker_result(virt_to_phys((void *)__get_free_pages(GFP_KERNEL | __GFP_ZERO, get_order(SZ_2M))));
}

/* "physical ADDRESS" */
static void tell_physical(int count, char **words)
{
	attacker_result(attacker_physical(simple_strtoul(words[0], NULL, 0)));
}

static const struct command {
	const char *name;
	void (*function)(int count, char **words);
	int words;
} commands[] = {
	{ "store", attacker_store, 3 },
	{ "data", run_data, 0 },
	{ "user", run_user, 0 },
	{ "frame", run_frame, 1 },
	{ "call", call, 1 },
	{ "page", new_page, 0 },
	{ "large", new_large_page, 0 },
	{ "physical", tell_physical, 1 },
	{ "pvalidate", attacker_pvalidate, 2 },
	{ "state", attacker_page_state, 2 },
	{ "switch", attacker_switch, 1 },
	{ "ask", attacker_ask, 5 },
	{ "desk", attacker_desk, 2 },
	{ "obey", attacker_obey, 0 },
	{ "together", attacker_ask_together, 5 },
};

static void act(char *line)
{
	char *words[MOST_WORDS + 1], *word;
	int count = 0, i;

	while ((word = strsep(&line, " \n")) && count < MOST_WORDS)
		if (*word)
			words[count++] = word;
	if (count < 2 || set_cpus_allowed_ptr(current, cpumask_of(simple_strtoul(words[0], NULL, 0))))
		return;
	for (i = 0; i < ARRAY_SIZE(commands); i++)
		if (!strcmp(commands[i].name, words[1]) && count - 2 == commands[i].words)
			commands[i].function(count - 2, words + 2);
}

static ssize_t attacker_write(struct file *file, const char __user *from, size_t size, loff_t *at)
{
	char *line = size < LONGEST_LINE ? memdup_user_nul(from, size) : ERR_PTR(-E2BIG);

	if (IS_ERR(line))
		return PTR_ERR(line);
	result_count = 0;
	act(line);
	kfree(line);
	return size;
}

static ssize_t attacker_read(struct file *file, char __user *to, size_t size, loff_t *at)
{
	char text[MOST_RESULTS * 20];
	size_t length = 0;
	unsigned int i;

	for (i = 0; i < result_count; i++)
		length += scnprintf(text + length, sizeof(text) - length, "%ld\n", results[i]);
	return simple_read_from_buffer(to, size, at, text, length);
}

static const struct file_operations operations = {
	.owner = THIS_MODULE,
	.write = attacker_write,
	.read = attacker_read,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "attacker",
	.fops = &operations,
};

static int __init attacker_init(void)
{
	return misc_register(&device);
}
module_init(attacker_init);

static void __exit attacker_exit(void)
{
	misc_deregister(&device);
}
module_exit(attacker_exit);

MODULE_DESCRIPTION("Attacks the kernel's code");
MODULE_LICENSE("GPL");
