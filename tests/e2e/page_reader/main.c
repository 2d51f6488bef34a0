// SPDX-License-Identifier: GPL-2.0
/*
 * Asks the test's service about a buffer, by the driver's own calls. What it asks with, and how that ended, are
 * parameters; a line of the kernel's log tells the answer.
 */
#include <linux/err.h>
#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sizes.h>
#include <linux/vmalloc.h>

#include "call.h"

#define SERVICE 9

static char *buffer = "vmalloc";
module_param(buffer, charp, 0);
static ulong length = PAGE_SIZE;
module_param(length, ulong, 0);
static char *wrong = "";
module_param(wrong, charp, 0);
/* A page for "wrong=page". */
static ulong gpa;
module_param(gpa, ulong, 0);
static unsigned int rounds = 1;
module_param(rounds, uint, 0);

/* Each round another content. */
static void *make_buffer(unsigned int round)
{
	size_t i, size = round_up(max(length, 1UL), PAGE_SIZE);
	u64 *made;

	if (!strcmp(buffer, "hole")) /* vmalloc leaves a page free behind each buffer */
		return vzalloc(PAGE_SIZE);
	made = strcmp(buffer, "pages") ? vzalloc(size) : alloc_pages_exact(size, GFP_KERNEL | __GFP_ZERO);
	for (i = 0; made && i < length / sizeof(u64); i++)
		made[i] = (i + round) * 0x9e3779b97f4a7c15;
	return made;
}

/* A `status` below zero is the driver's own error. */
static void tell(long status, const u8 *digest)
{
	pr_info("pager: %ld %*phN\n", status, 32, digest);
}

static void ask(const void *from)
{
	struct veil_pages *pages = veil_pages_of(from + !strcmp(wrong, "odd"), length);
	u32 said = length;
	u8 digest[32] = {};
	char data[128] = {};
	struct veil_request request = {
		.service = SERVICE,
		.pages = pages,
		.head = &said,
		.head_length = sizeof(said),
		.answer = digest,
		.room = sizeof(digest),
	};

	if (IS_ERR(pages)) {
		tell(PTR_ERR(pages), digest);
		return;
	}
	if (!strcmp(wrong, "twice"))
		pages->gpas[pages->count - 1] = pages->gpas[0];
	if (!strcmp(wrong, "page"))
		pages->gpas[pages->count - 1] = gpa;
	if (!strcmp(wrong, "body")) {
		request.data = data;
		request.data_length = sizeof(data);
	}
	tell(veil_ask(&request), digest);
	kvfree(pages);
}

/* They stay until the module goes: a late answer is about what the first one holds. */
static void *made[2];

static void ask_about_buffer(unsigned int round)
{
	made[round] = make_buffer(round);
	if (!strcmp(buffer, "user"))
		ask((void *)SZ_4M);
	else if (!strcmp(buffer, "driver"))
		ask((void *)((ulong)ask & PAGE_MASK));
	else if (made[round])
		ask(made[round]);
}

static int __init pager_init(void)
{
	int error = veil_call_begin();
	unsigned int round;

	if (error)
		return error;
	for (round = 0; round < min(rounds, 2U); round++)
		ask_about_buffer(round);
	return 0;
}
module_init(pager_init);

static void __exit pager_exit(void)
{
	unsigned int round;

	veil_call_end();
	for (round = 0; round < 2; round++)
		if (is_vmalloc_addr(made[round]))
			vfree(made[round]);
		else if (made[round])
			free_pages_exact(made[round], round_up(length, PAGE_SIZE));
}
module_exit(pager_exit);

MODULE_DESCRIPTION("Asks about pages");
MODULE_LICENSE("GPL");
