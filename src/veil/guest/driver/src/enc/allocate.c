// SPDX-License-Identifier: GPL-2.0
/* Pages that an enclave gets, whoever they are taken from. */
#include <linux/err.h>
#include <linux/mm.h>

#include "../pages.h"
#include "enc.h"

/* What goes from an enclave takes as much memory until it is swapped. */
#define TRIES 4

struct veil_pages *veil_enclave_allocate(struct veil_enclave *enclave, size_t count)
{
	struct veil_pages *pages;
	int error = veil_enclave_charge(enclave, count);

	if (error)
		return ERR_PTR(error);
	pages = veil_enclave_allocate_again(enclave, count);
	if (IS_ERR(pages))
		veil_enclave_uncharge(enclave, count);
	return pages;
}

struct veil_pages *veil_enclave_allocate_again(struct veil_enclave *enclave, size_t count)
{
	struct veil_pages *pages = veil_pages_new(count * PAGE_SIZE);
	int tries = 0;

	if (IS_ERR(pages))
		return pages;
	veil_enclaves_make_room(enclave, count);
	while (pages->count < count) {
		if (veil_enclave_attach_run(enclave, pages, count - pages->count))
			continue;
		if (tries++ == TRIES || veil_enclaves_reclaim(enclave, count) <= 0) {
			veil_enclave_free_pages(enclave, pages);
			return ERR_PTR(-ENOMEM);
		}
	}
	return pages;
}
