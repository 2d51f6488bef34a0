/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What service and starter do before an enclave runs: its content from an image, its information page, its arguments. */
#include "native.h"

#define NR_OPEN 2
#define NR_CLOSE 3
#define NR_FSTAT 5
#define IMAGE_AT 0x7e0000000000
#define TAR_BLOCK 512
#define RUNTIME_ROOM 0x1000000

struct layout_header {
	u8 magic[8];
	u32 version, slots;
	u64 entry, vectors, pool_pages, arena_pages;
	u32 window_pages, records;
	u64 reserved;
};

struct layout_record {
	u32 kind, prot;
	u64 va, pages;
	u8 digest[48];
};

static void map(u64 address, u64 bytes, u32 prot)
{
	if (raw(NR_MMAP, address, bytes, prot, FIXED, (u64)-1, 0) != (s64)address)
		die("cannot map\n");
}

static u64 octal(const u8 *text)
{
	u64 value = 0;

	for (u32 i = 0; text[i] >= '0' && text[i] <= '7'; i++)
		value = value * 8 + (u64)(text[i] - '0');
	return value;
}

static bool same(const u8 *a, const char *b)
{
	while (*b && *a == (u8)*b)
		a++, b++;
	return *a == (u8)*b;
}

static void load_records(const struct layout_header *layout, const u8 *content)
{
	const struct layout_record *records = (const void *)(layout + 1);

	for (u32 i = 0; i < layout->records; i++) {
		const struct layout_record *record = &records[i];
		u64 bytes = record->pages * PAGE;

		if (record->va - VEIL_ENC_RUNTIME >= RUNTIME_ROOM) {
			map(record->va, bytes, 3);
			if (record->kind == 1)
				memcpy((void *)record->va, content, bytes);
			if (raw(NR_MPROTECT, record->va, bytes, record->prot, 0, 0, 0))
				die("cannot protect\n");
		}
		content += record->kind == 1 ? bytes : 0;
	}
}

static void fill_info(const struct layout_header *layout)
{
	static const u32 leaves[] = { 0, 1, 7, 0x80000000, 0x80000001 };
	struct veil_enclave_info *info = (void *)VEIL_ENC_INFO;

	map(VEIL_ENC_INFO, PAGE, 3);
	info->slots = layout->slots;
	info->window_pages = layout->window_pages;
	info->pool_pages = layout->pool_pages;
	info->arena_pages = layout->arena_pages;
	for (u32 i = 0; i < LENGTH(leaves); i++) {
		struct veil_cpuid_entry *entry = &info->cpuid[info->cpuid_entries++];

		entry->eax_in = leaves[i];
		__asm__ volatile("cpuid"
				 : "=a"(entry->eax), "=b"(entry->ebx), "=c"(entry->ecx), "=d"(entry->edx)
				 : "a"(leaves[i]), "c"(0));
	}
}

void load_image(const char *path, u64 *pool)
{
	u8 status[144];
	s64 fd = raw(NR_OPEN, (u64)path, 0, 0, 0, 0, 0);
	const struct layout_header *layout = NULL;
	const u8 *content = NULL;
	u64 size;

	if (fd < 0 || raw(NR_FSTAT, (u64)fd, (u64)status, 0, 0, 0, 0))
		die("cannot open the image\n");
	memcpy(&size, status + 48, 8);
	if (raw(NR_MMAP, IMAGE_AT, size, 1, 0x12, (u64)fd, 0) != (s64)IMAGE_AT)
		die("cannot map the image\n");
	raw(NR_CLOSE, (u64)fd, 0, 0, 0, 0, 0);
	for (u64 at = 0; at + TAR_BLOCK <= size;) {
		const u8 *member = (const u8 *)IMAGE_AT + at;
		u64 bytes = octal(member + 124);

		if (same(member, "layout"))
			layout = (const void *)(member + TAR_BLOCK);
		if (same(member, "content"))
			content = member + TAR_BLOCK;
		at += TAR_BLOCK + (bytes + TAR_BLOCK - 1) / TAR_BLOCK * TAR_BLOCK;
	}
	if (!layout || !content)
		die("no layout or content in the image\n");
	*pool = layout->pool_pages;
	map(VEIL_ENC_WINDOW, layout->slots * VEIL_ENC_WINDOW_STRIDE, 3);
	map(VEIL_ENC_THREADS, layout->slots * VEIL_ENC_THREAD_STRIDE, 3);
	fill_info(layout);
	load_records(layout, content);
}

void pass_strings(char **arguments)
{
	struct veil_start_block *start = (void *)(VEIL_ENC_WINDOW + PAGE);
	char *to = (char *)(start + 1);
	char **at = arguments;

	start->magic = VEIL_ENC_START_MAGIC;
	for (u32 part = 0; part < 2; part++, at++) {
		for (; *at; at++) {
			u64 length = 0;

			while ((*at)[length])
				length++;
			memcpy(to, *at, length + 1);
			to += length + 1;
			if (part)
				start->environment++;
			else
				start->arguments++;
		}
	}
	start->bytes = (u32)(to - (char *)(start + 1));
}
