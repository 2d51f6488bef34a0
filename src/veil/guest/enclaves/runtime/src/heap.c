/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The runtime's own memory, in blocks whose sizes are powers of two. */
#include "runtime.h"

#define SMALLEST 5
#define CLASSES 20

struct head {
	struct head *next; /* of the free ones */
	u64 class;
};

static struct head *free_blocks[CLASSES];
static u64 heap_next, heap_end;
static struct lock heap_lock;

void heap_start(void)
{
	heap_next = HEAP_AT;
	heap_end = HEAP_AT + CONFIG->heap_bytes;
}

void *heap_take(struct thread *self, u64 bytes)
{
	u64 class = SMALLEST;
	struct head *found;

	while (class < CLASSES && (u64)1 << class < bytes + sizeof(struct head))
		class++;
	if (class == CLASSES)
		return NULL;
	lock(self, &heap_lock);
	found = free_blocks[class];
	if (found) {
		free_blocks[class] = found->next;
	} else if (heap_end - heap_next >= (u64)1 << class) {
		found = (struct head *)heap_next;
		heap_next += (u64)1 << class;
		found->class = class;
	}
	unlock(&heap_lock);
	if (!found)
		return NULL;
	memset(found + 1, 0, bytes);
	return found + 1;
}

void heap_give(struct thread *self, void *block)
{
	struct head *head = (struct head *)block - 1;

	if (!block)
		return;
	lock(self, &heap_lock);
	head->next = free_blocks[head->class];
	free_blocks[head->class] = head;
	unlock(&heap_lock);
}
