/* SPDX-License-Identifier: GPL-2.0-or-later */
/* mremap: areas of the program's memory that grow, or go to another place with their pages. */
#include "areas.h"
#include "memory.h"
#include "memory_parts.h"

/* As many at once as the pool has pages: those that were moved are free for the next. False: it has none for the first. */
static bool move_pages(struct thread *self, const struct area *area, u64 to)
{
	u64 part = area->end - area->start;

	for (u64 at = area->start; at < area->end; at += part, to += part) {
		part = least(part, area->end - at);
		/* It must be readable for a moment, whatever it is for the program. */
		while (!memory_ask_map(self, to, to + part, PROT_READ | PROT_WRITE)) {
			if (part == PAGE && at > area->start)
				memory_is_out(self);
			if (part == PAGE)
				return false;
			part = page_up(part / 2);
		}
		if (!area->prot)
			memory_ask_protect(self, at, at + part, PROT_READ);
		self->moves = true;
		if (copy_user((void *)to, (void *)at, part))
			attacked(self, "pages at %x are not where the service put them", at);
		self->moves = false;
		memory_ask_unmap(self, at, at + part);
		if (area->prot != (PROT_READ | PROT_WRITE))
			memory_ask_protect(self, to, to + part, area->prot);
	}
	return true;
}

/* Pages and areas from one place to another, which is free. */
static bool move_range(struct thread *self, u64 from, u64 to, u64 bytes)
{
	const u64 start = from, end = from + bytes;

	for (u32 at = area_after(from); area_number(at) && area_number(at)->start < end; at = area_after(from)) {
		struct area area = *area_number(at);
		u64 place = to + (area.start - from);

		if (area.resident && !move_pages(self, &area, place)) {
			/* What has moved is not where the program would look for it. */
			if (from > start)
				memory_is_out(self);
			return false;
		}
		to = place + (area.end - area.start);
		from = area.end;
		area_remove(area.start, area.end);
		if (!area_add(self, (struct area){ place, to, area.prot, area.resident, area.file, area.source,
						   area.source ? area.origin + (place - area.start) : 0 }))
			return false;
	}
	return true;
}

static s64 grow(struct thread *self, u64 start, u64 old, u64 new, u32 flags, u64 wanted)
{
	struct area last;
	s64 place;

	if (!area_number(area_after(start + old - 1)) || area_number(area_after(start + old - 1))->start >= start + old)
		return -EFAULT;
	last = *area_number(area_after(start + old - 1));
	if (!(flags & MREMAP_FIXED) && memory_may_be(start, new) && area_free(start + old, start + new)) {
		place = (s64)start;
	} else {
		if (!(flags & MREMAP_MAYMOVE))
			return -ENOMEM;
		place = memory_choose(self, wanted, new, flags & MREMAP_FIXED ? MAP_FIXED : 0);
		if (place < 0)
			return place;
		if (!area_cut(self, start, start + old) || !move_range(self, start, (u64)place, old))
			return -ENOMEM;
	}
	if (new > old &&
	    !area_add(self, (struct area){ (u64)place + old, (u64)place + new, last.prot, false, false, NULL, 0 }))
		return -ENOMEM;
	area_join((u64)place, (u64)place + new);
	return place;
}

s64 memory_move(struct thread *self, u64 start, u64 old, u64 new, u32 flags, u64 wanted)
{
	s64 result = (s64)start;

	old = page_up(old);
	new = page_up(new);
	if (start % PAGE || !new || !old || flags & ~(u32)(MREMAP_MAYMOVE | MREMAP_FIXED) || !is_user(start, old))
		return -EINVAL;
	if (flags & MREMAP_FIXED && (!(flags & MREMAP_MAYMOVE) || (wanted < start + old && start < wanted + new)))
		return -EINVAL;
	lock(self, &memory_lock);
	if (new < old && !memory_clear(self, start + new, start + old))
		result = -ENOMEM;
	else if (new > old || flags & MREMAP_FIXED)
		result = grow(self, start, least(old, new), new, flags, flags & MREMAP_FIXED ? wanted : 0);
	unlock(&memory_lock);
	return result;
}
