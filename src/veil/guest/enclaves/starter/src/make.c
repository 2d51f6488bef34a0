/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The enclave is made of the image's parts. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "starter.h"

#define DEVICE "/dev/veil-enclave"
#define PAGE 4096

/* veil/formats/enclaves.py: the packed layout. */
struct layout_header {
	char magic[8];
	uint32_t version;
	uint32_t slots;
	uint64_t entry;
	uint64_t vectors;
	uint64_t pool_pages;
	uint64_t arena_pages;
	uint32_t window_pages;
	uint32_t records;
	uint64_t reserved_038;
};

struct layout_record {
	uint32_t kind;
	uint32_t prot;
	uint64_t va;
	uint64_t pages;
	uint8_t digest[48];
};

#define RECORD_CONTENT 1

static void add_content(int device, const struct image *image, const struct layout_header *header)
{
	const struct layout_record *records = (const struct layout_record *)(header + 1);
	uint64_t left = image->content_size / PAGE;
	const uint8_t *from = image->content;
	uint32_t at;

	for (at = 0; at < header->records; at++) {
		struct veil_enclave_add add = { .record = at, .from = (uint64_t)from, .pages = records[at].pages };

		if (records[at].kind != RECORD_CONTENT)
			continue;
		if (add.pages > left)
			refuse("the image's content is shorter than its layout says");
		if (ioctl(device, VEIL_ENCLAVE_ADD, &add))
			fail("VeilS-ENC does not take the content", errno);
		left -= add.pages;
		from += add.pages * PAGE;
	}
}

static void map_windows(int device, const struct layout_header *header)
{
	uint32_t slot;

	for (slot = 0; slot < header->slots; slot++) {
		void *address = (void *)(VEIL_ENC_WINDOW + (uint64_t)slot * VEIL_ENC_WINDOW_STRIDE);
		void *mapped = mmap(address, (size_t)header->window_pages * PAGE, PROT_READ | PROT_WRITE,
				    MAP_SHARED | MAP_FIXED_NOREPLACE, device, (off_t)slot * VEIL_ENC_WINDOW_STRIDE);

		if (mapped != address)
			fail("cannot map a window", errno);
	}
}

int make_enclave(const struct image *image, uint32_t *slots)
{
	struct veil_enclave_create create = { .layout = (uint64_t)image->layout, .length = image->layout_size };
	struct veil_enclave_finish finish;
	struct layout_header header;
	int device = open(DEVICE, O_RDWR | O_CLOEXEC);

	if (device < 0)
		fail(DEVICE " (is VeilS-ENC on in this CVM?)", errno);
	if (image->layout_size < sizeof(header))
		refuse("the image's layout is cut short");
	memcpy(&header, image->layout, sizeof(header));
	if (image->layout_size < sizeof(header) + header.records * sizeof(struct layout_record))
		refuse("the image's layout is cut short");
	if (ioctl(device, VEIL_ENCLAVE_CREATE, &create))
		fail("VeilS-ENC makes no such enclave", errno);
	add_content(device, image, (const struct layout_header *)image->layout);
	if (ioctl(device, VEIL_ENCLAVE_FINISH, &finish))
		fail("VeilS-ENC does not finish the enclave", errno);
	map_windows(device, &header);
	*slots = header.slots;
	return device;
}
