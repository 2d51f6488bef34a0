/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Maps of trusted files. What is in them is certain from the start, so it can come later: a chunk is read, checked and mapped
 * when the program touches it. Of most libraries a program touches little.
 */
#include "areas.h"
#include "files.h"
#include "memory.h"
#include "memory_parts.h"

/* Whether all of a range is what a file has at an offset. The lock is held. */
static bool shows(u64 start, u64 end, const struct config_file *source, u64 offset)
{
	u64 next = start;

	for (u32 at = area_after(start); next < end; at++) {
		const struct area *area = area_number(at);

		if (!area || area->start > next || area->source != source || area->origin != start - offset)
			return false;
		next = area->end;
	}
	return true;
}

s64 memory_map_trusted(struct thread *self, u64 wanted, u64 bytes, u32 prot, u32 flags, s32 fd, u64 offset,
		       const struct config_file *source)
{
	s64 place;

	/* It is closed soon, by a loader. */
	if (!keep_trusted(self, fd, source))
		return memory_map(self, wanted, bytes, prot, flags, fd, offset);
	if (!bytes || prot & ~(u32)PROT_ALL || offset % PAGE || bytes > VEIL_ENC_TOP)
		return -EINVAL;
	bytes = page_up(bytes);
	lock(self, &memory_lock);
	/* A loader maps a library whole, and then each part of it again at its place: what has come stays. */
	if (flags & MAP_FIXED && !(prot & PROT_WRITE) && !(wanted % PAGE) && is_user(wanted, bytes) &&
	    shows(wanted, wanted + bytes, source, offset)) {
		place = memory_protect_parts(self, wanted, wanted + bytes, prot) ?: (s64)wanted;
		goto out;
	}
	place = memory_choose(self, wanted, bytes, flags);
	if (place < 0)
		goto out;
	if (area_add(self,
		     (struct area){ (u64)place, (u64)place + bytes, prot, false, true, source, (u64)place - offset }))
		area_join((u64)place, (u64)place + bytes);
	else
		place = -ENOMEM;
out:
	unlock(&memory_lock);
	return place;
}

/* The part of an area that lies in a chunk; one page of it if there are not enough. The lock is held. */
static void map_chunk(struct thread *self, const struct area *area, u64 chunk, const u8 *data, u64 address)
{
	u64 start = most(area->start, chunk), end = least(area->end, chunk + CHUNK);
	u32 prot = memory_real_prot(area->prot);

	/* No part of the file: zeros, as behind its end. */
	if (!data) {
		start = page_down(address);
		end = start + PAGE;
		if (!memory_ask_map(self, start, end, area->prot))
			memory_is_out(self);
	} else if (!ask_fill(self, start, (end - start) / PAGE, prot, data + (start - chunk))) {
		start = page_down(address);
		end = start + PAGE;
		if (!ask_fill(self, start, 1, prot, data + (start - chunk)))
			memory_is_out(self);
	}
	memory_note_pages(self, start, end);
}

s64 memory_bring_trusted(struct thread *self, struct area area, u64 address)
{
	const u64 offset = address - area.origin, chunk = address - offset % CHUNK;
	const struct area *now;
	const u8 *data = NULL;

	if (offset - offset % CHUNK < area.source->size) {
		data = take_chunk(self, kept_descriptor(area.source), area.source, offset / CHUNK, false);
		if (!data)
			return -EIO;
	}
	lock(self, &memory_lock);
	now = area_number(area_after(address));
	/* Else another thread was faster, or has mapped something else there: the access tells when it is made again. */
	if (now && now->start <= address && !now->resident && now->source == area.source && now->origin == area.origin)
		map_chunk(self, now, chunk, data, address);
	unlock(&memory_lock);
	if (data)
		give_chunk(self, data, false);
	return 0;
}
