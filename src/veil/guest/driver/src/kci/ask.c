// SPDX-License-Identifier: GPL-2.0
/* Requests to VeilS-KCI. */
#include <linux/err.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/sizes.h>
#include <linux/slab.h>

#include "../call.h"
#include "kci.h"

/*
 * A file is sent in pieces, since interrupts are off while the service copies one. The last one, which is all of most files,
 * comes with the module's memory.
 */
#define PIECE SZ_1M

/* veil/formats/kci.py: FilePart. */
struct veil_kci_piece {
	u64 length;
	u64 offset;
};

/* veil/formats/kci.py: MemoryType; the kernel's own enum mod_mem_type. */
#define VEIL_KCI_MEMORY_TYPES 7

/* veil/formats/kci.py: ModuleMemory. */
struct veil_kci_memory {
	u64 address;
	u64 size;
};

/* veil/formats/kci.py: FilePart, ModulePrepared. */
struct veil_kci_prepared {
	struct veil_kci_piece rest;
	u64 percpu;
	struct veil_kci_memory memory[VEIL_KCI_MEMORY_TYPES];
};

static_assert(MOD_TEXT == 0 && MOD_DATA == 1 && MOD_RODATA == 2 && MOD_RO_AFTER_INIT == 3);
static_assert(MOD_INIT_TEXT == 4 && MOD_INIT_DATA == 5 && MOD_INIT_RODATA == 6);
static_assert(MOD_MEM_NUM_TYPES == VEIL_KCI_MEMORY_TYPES);

/* What is prepared is of the file that came last: nobody else's may come between. */
static DEFINE_MUTEX(admission);
static atomic64_t waited_host;

/*
 * Whoever asks waits until the host runs the service: a request may be served late, and the pages that it is about would be
 * taken or given back behind the kernel's back.
 */
static bool wait_for_host(enum veil_status status)
{
	if (status != VEIL_NO_ANSWER)
		return false;
	atomic64_inc(&waited_host);
	return true;
}

/* 0 or an error. */
static int ask(enum veil_kci_call call, const struct veil_pages *pages, const void *body, u32 length, u32 *answer)
{
	struct veil_request request = {
		.service = VEIL_KCI_SERVICE,
		.call = call,
		.pages = pages,
		.head = body,
		.head_length = length,
		.answer = answer,
		.room = answer ? sizeof(*answer) : 0,
	};
	enum veil_status status = veil_ask_or_wait(&request, wait_for_host);

	if (status == VEIL_NOT_ALLOWED)
		return -EPERM;
	if (status != VEIL_OK) {
		pr_err("veil: VeilS-KCI's answer to call %d: status %d\n", call, status);
		return status == VEIL_UNKNOWN_SERVICE ? -ENODEV : -EIO;
	}
	return answer && request.answer_length != sizeof(*answer) ? -EPROTO : 0;
}

/* All but its rest, of which it says where that begins. */
static int send_file(const struct veil_kci_file *file, struct veil_kci_piece *rest)
{
	struct veil_kci_piece piece = { .length = file->length };
	int error = 0;

	while (!error && file->length - piece.offset > PIECE) {
		struct veil_pages *pages = veil_pages_of(file->copy + piece.offset, PIECE);

		if (IS_ERR(pages))
			return PTR_ERR(pages);
		error = ask(VEIL_KCI_MODULE_FILE, pages, &piece, sizeof(piece), NULL);
		kvfree(pages);
		piece.offset += PIECE;
	}
	*rest = piece;
	return error;
}

static int send_module(const struct module *module, const struct veil_kci_file *file, const struct veil_kci_piece *rest,
		       u32 *number)
{
	struct veil_kci_prepared prepared = { .rest = *rest, .percpu = (unsigned long)module->percpu };
	size_t left = file->length - rest->offset, size = PAGE_ALIGN(left), i;
	struct veil_pages *pages;
	int error;

	for (i = 0; i < VEIL_KCI_MEMORY_TYPES; i++)
		size += module->mem[i].size;
	pages = veil_pages_new(size);
	if (IS_ERR(pages))
		return PTR_ERR(pages);
	error = veil_pages_add(pages, file->copy + rest->offset, left);
	for (i = 0; i < VEIL_KCI_MEMORY_TYPES && !error; i++) {
		const struct module_memory *memory = &module->mem[i];

		if (!memory->size)
			continue;
		prepared.memory[i] = (struct veil_kci_memory){ (unsigned long)memory->base, memory->size };
		error = veil_pages_add(pages, memory->base, memory->size);
	}
	if (!error)
		error = ask(VEIL_KCI_MODULE_PREPARED, pages, &prepared, sizeof(prepared), number);
	kvfree(pages);
	return error;
}

int veil_kci_ask_admission(const struct module *module, const struct veil_kci_file *file, u32 *number)
{
	struct veil_kci_piece rest;
	int error;

	mutex_lock(&admission);
	error = send_file(file, &rest);
	if (!error)
		error = send_module(module, file, &rest, number);
	mutex_unlock(&admission);
	return error;
}

int veil_kci_say_live(u32 number)
{
	return ask(VEIL_KCI_MODULE_LIVE, NULL, &number, sizeof(number), NULL);
}

int veil_kci_say_gone(u32 number)
{
	return ask(VEIL_KCI_MODULE_GONE, NULL, &number, sizeof(number), NULL);
}

int veil_kci_ask_lock_down(void)
{
	return ask(VEIL_KCI_LOCK_DOWN, NULL, NULL, 0, NULL);
}

int veil_kci_ask_state(char *text, size_t size)
{
	return scnprintf(text, size, " waited_host %lld", atomic64_read(&waited_host));
}
