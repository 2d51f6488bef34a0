/* SPDX-License-Identifier: GPL-2.0 */
/* Pages by reference: how a request names memory that does not fit into its block. */
#ifndef VEIL_PAGES_H
#define VEIL_PAGES_H

#include <linux/types.h>

/* The most pages that a request can name beside a body of 64 bytes (VEIL_BODY_SIZE): a buffer of nearly 32 MiB. */
#define VEIL_MAX_PAGES 8176

/* GPAs of pages in the order of the buffer that they make. */
struct veil_pages {
	u32 count;
	u64 gpas[];
};

/*
 * The pages of a buffer from vmalloc, or in the kernel's direct mapping. It begins where a page begins, and stays until the
 * request is answered: the service reads the pages then. To be freed with kvfree.
 *
 * Errors, as ERR_PTR: -EINVAL if it is empty or does not begin with a page, -E2BIG for more than VEIL_MAX_PAGES, -EFAULT
 * if a part of it is not memory that the kernel has, -ENOMEM.
 */
struct veil_pages *veil_pages_of(const void *buffer, size_t length);

/* The same for several buffers one behind the other: room for `length` bytes of them all, and each of them in turn. */
struct veil_pages *veil_pages_new(size_t length);
int veil_pages_add(struct veil_pages *pages, const void *buffer, size_t length);

#endif
