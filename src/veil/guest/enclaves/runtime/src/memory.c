/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The program's memory is managed in here: the kernel is not asked, so it cannot lie about where something is. The
 * service maps pages of the pool, zeroed, and changes what may be done with them. Larger areas get pages when they are
 * touched, a few at once.
 */
#include "areas.h"
#include "memory.h"
#include "memory_parts.h"

/* So many come by one fault. veil/services/enc/mailbox.py has the same number. */
#define AT_ONCE (64 * PAGE)
#define MAP_LIMIT (4096 * PAGE)
#define LOW_START 0x10000000
#define LOW_END 0x80000000
#define FIRST_ADDRESS 0x10000

struct lock memory_lock;
static u64 brk_now;
/* Where the next fault is likely to be: in an area that was made last, or behind the pages that came last. */
static u64 likely;

static u64 arena_end(void)
{
	return VEIL_ENC_ARENA + ((const struct veil_enclave_info *)VEIL_ENC_INFO)->arena_pages * PAGE;
}

u32 memory_real_prot(u32 prot)
{
	return prot ? prot | PROT_READ : 0;
}

bool memory_ask_map(struct thread *self, u64 start, u64 end, u32 prot)
{
	for (u64 at = start; at < end;) {
		u64 part = least(end - at, MAP_LIMIT);

		if (ask_service(self, VEIL_MAILBOX_MAP, at, part / PAGE, memory_real_prot(prot), NULL) != STATUS_OK) {
			if (at > start)
				ask_service(self, VEIL_MAILBOX_UNMAP, start, (at - start) / PAGE, 0, NULL);
			return false;
		}
		at += part;
	}
	return true;
}

void memory_ask_unmap(struct thread *self, u64 start, u64 end)
{
	if (ask_service(self, VEIL_MAILBOX_UNMAP, start, (end - start) / PAGE, 0, NULL) != STATUS_OK)
		attacked(self, "the service does not take back the pages at %x", start);
}

void memory_ask_protect(struct thread *self, u64 start, u64 end, u32 prot)
{
	if (ask_service(self, VEIL_MAILBOX_PROTECT, start, (end - start) / PAGE, memory_real_prot(prot), NULL) !=
	    STATUS_OK)
		attacked(self, "the service does not protect the pages at %x", start);
}

void memory_start(void)
{
	const struct config_area *known = config_at(CONFIG->areas);
	struct thread *self = thread_of(0);

	for (u32 i = 0; i < CONFIG->area_count; i++)
		area_add(self, (struct area){ known[i].start, known[i].end, known[i].prot, true, true, NULL, 0 });
	brk_now = CONFIG->brk_start;
}

bool memory_clear(struct thread *self, u64 start, u64 end)
{
	if (!area_cut(self, start, end))
		return false;
	for (u32 at = area_after(start); area_number(at) && area_number(at)->start < end; at++)
		if (area_number(at)->resident)
			memory_ask_unmap(self, area_number(at)->start, area_number(at)->end);
	area_remove(start, end);
	return true;
}

bool memory_may_be(u64 start, u64 bytes)
{
	return start >= FIRST_ADDRESS && !(start % PAGE) && is_user(start, bytes) &&
	       (start + bytes <= VEIL_ENC_ARENA || (start >= VEIL_ENC_ARENA && start + bytes <= arena_end()));
}

s64 memory_choose(struct thread *self, u64 wanted, u64 bytes, u32 flags)
{
	u64 place;

	if (flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)) {
		if (wanted % PAGE)
			return -EINVAL;
		if (!memory_may_be(wanted, bytes))
			return -ENOMEM;
		if (area_free(wanted, wanted + bytes))
			return (s64)wanted;
		if (flags & MAP_FIXED_NOREPLACE)
			return -EEXIST;
		return memory_clear(self, wanted, wanted + bytes) ? (s64)wanted : -ENOMEM;
	}
	wanted = page_down(wanted);
	if (memory_may_be(wanted, bytes) && area_free(wanted, wanted + bytes) &&
	    (!(flags & MAP_32BIT) || wanted + bytes <= LOW_END))
		return (s64)wanted;
	if (flags & MAP_32BIT)
		place = area_find(bytes, LOW_START, LOW_END);
	else
		place = area_find(bytes, VEIL_ENC_ARENA, arena_end());
	return place ? (s64)place : -ENOMEM;
}

/* The content of a file, page for page; what lies behind its end stays zero. */
static s64 fill(struct thread *self, s32 fd, u64 to, u64 bytes, u64 offset)
{
	while (bytes) {
		s64 done = pread_file(self, fd, to, bytes, offset);

		if (done <= 0)
			return done;
		to += (u64)done;
		offset += (u64)done;
		bytes -= (u64)done;
	}
	return 0;
}

/* The program may write there: it is a copy of its own. */
static void forget_source(struct area *area)
{
	area->source = NULL;
	area->origin = 0;
}

s64 memory_protect_parts(struct thread *self, u64 start, u64 end, u32 prot)
{
	u64 next = start;

	if (!area_cut(self, start, end))
		return -ENOMEM;
	for (u32 at = area_after(start); area_number(at) && area_number(at)->start < end; at++) {
		struct area *area = area_number(at);

		if (area->start != next)
			break;
		next = area->end;
		if (area->resident && area->prot != prot)
			memory_ask_protect(self, area->start, area->end, prot);
		area->prot = prot;
		if (prot & PROT_WRITE && area->resident)
			forget_source(area);
	}
	area_join(start, end);
	return next < end ? -ENOMEM : 0;
}

s64 memory_map(struct thread *self, u64 wanted, u64 bytes, u32 prot, u32 flags, s32 fd, u64 offset)
{
	bool file = !(flags & MAP_ANONYMOUS);
	s64 place, result;

	if (!bytes || prot & ~(u32)PROT_ALL || offset % PAGE || bytes > VEIL_ENC_TOP)
		return -EINVAL;
	bytes = page_up(bytes);
	lock(self, &memory_lock);
	place = memory_choose(self, wanted, bytes, flags);
	if (place < 0)
		goto out;
	if (file && !memory_ask_map(self, (u64)place, (u64)place + bytes, PROT_READ | PROT_WRITE)) {
		place = -ENOMEM;
		goto out;
	}
	if (!area_add(self, (struct area){ (u64)place, (u64)place + bytes, file ? PROT_READ | PROT_WRITE : prot, file,
					   file, NULL, 0 })) {
		if (file)
			memory_ask_unmap(self, (u64)place, (u64)place + bytes);
		place = -ENOMEM;
		goto out;
	}
	if (file) {
		/* Without the lock: to read may take long, and locks of its own. */
		unlock(&memory_lock);
		result = fill(self, fd, (u64)place, bytes, offset);
		lock(self, &memory_lock);
		if (result >= 0)
			result = memory_protect_parts(self, (u64)place, (u64)place + bytes, prot);
		if (result < 0) {
			memory_clear(self, (u64)place, (u64)place + bytes);
			place = result;
			goto out;
		}
	} else {
		likely = (u64)place;
	}
	area_join((u64)place, (u64)place + bytes);
out:
	unlock(&memory_lock);
	return place;
}

s64 memory_unmap(struct thread *self, u64 start, u64 bytes)
{
	s64 result;

	if (start % PAGE || !bytes || !is_user(start, bytes))
		return -EINVAL;
	lock(self, &memory_lock);
	result = memory_clear(self, start, start + page_up(bytes)) ? 0 : -ENOMEM;
	unlock(&memory_lock);
	return result;
}

s64 memory_protect(struct thread *self, u64 start, u64 bytes, u32 prot)
{
	s64 result;

	if (start % PAGE || prot & ~(u32)PROT_ALL)
		return -EINVAL;
	bytes = page_up(bytes);
	if (!bytes)
		return 0;
	if (!is_user(start, bytes))
		return -ENOMEM;
	lock(self, &memory_lock);
	result = memory_protect_parts(self, start, start + bytes, prot);
	unlock(&memory_lock);
	return result;
}

s64 memory_advise(struct thread *self, u64 start, u64 bytes, u32 advice)
{
	s64 result = 0;

	if (start % PAGE)
		return -EINVAL;
	bytes = page_up(bytes);
	if (!bytes || advice != MADV_DONTNEED)
		return 0;
	if (!is_user(start, bytes))
		return -ENOMEM;
	lock(self, &memory_lock);
	if (!area_cut(self, start, start + bytes))
		result = -ENOMEM;
	for (u32 at = area_after(start); !result && area_number(at) && area_number(at)->start < start + bytes; at++) {
		struct area *area = area_number(at);

		if (!area->resident || area->file)
			continue;
		memory_ask_unmap(self, area->start, area->end);
		area->resident = false;
	}
	area_join(start, start + bytes);
	unlock(&memory_lock);
	return result;
}

_Noreturn void memory_is_out(struct thread *self)
{
	log_line(self, "out of memory: all %d pages of the pool are in use", CONFIG->pool_pages);
	end_enclave(self, 137, 9);
}

s64 memory_brk(struct thread *self, u64 end)
{
	u64 old, new;

	lock(self, &memory_lock);
	old = page_up(brk_now);
	new = page_up(end);
	if (end < CONFIG->brk_start || end > CONFIG->brk_end)
		goto out;
	if (new > old) {
		if (!area_free(old, new) ||
		    !area_add(self, (struct area){ old, new, PROT_READ | PROT_WRITE, false, false, NULL, 0 }))
			goto out;
		likely = old;
		area_join(old, new);
	} else if (new < old && !memory_clear(self, new, old)) {
		goto out;
	}
	brk_now = end;
out:
	end = brk_now;
	unlock(&memory_lock);
	return (s64)end;
}

void memory_note_pages(struct thread *self, u64 start, u64 end)
{
	struct area *area;

	if (!area_cut(self, start, end))
		end_enclave(self, 137, 9);
	area = area_number(area_after(start));
	if (!area->source)
		likely = end;
	area->resident = true;
	if (area->prot & PROT_WRITE)
		forget_source(area);
	area_join(start, end);
}

u64 memory_fault(struct thread *self, bool *there)
{
	u64 address, start, pages;
	struct area *area;

	lock(self, &memory_lock);
	area = area_number(area_after(likely));
	if (area && !area->resident && area->prot && !area->source)
		address = ask_fault(self, area->start, (area->end - area->start) / PAGE, memory_real_prot(area->prot),
				    &start, &pages);
	else
		address = ask_fault(self, 0, 0, 0, &start, &pages);
	*there = pages;
	if (pages)
		memory_note_pages(self, start, start + pages * PAGE);
	unlock(&memory_lock);
	return address;
}

s64 memory_bring(struct thread *self, u64 address, u32 needed)
{
	struct area *area, trusted;
	s64 result = -EFAULT;
	u64 start, end;

	if (!is_user(address, 1))
		return -EFAULT;
	lock(self, &memory_lock);
	area = area_number(area_after(address));
	if (!area || area->start > address || needed & ~memory_real_prot(area->prot))
		goto out;
	result = 0;
	if (area->resident)
		goto out; /* another thread was faster */
	if (area->source) {
		trusted = *area;
		unlock(&memory_lock);
		return memory_bring_trusted(self, trusted, address);
	}
	start = most(address & ~(AT_ONCE - 1), area->start);
	end = least((address & ~(AT_ONCE - 1)) + AT_ONCE, area->end);
	if (!memory_ask_map(self, start, end, area->prot)) {
		start = page_down(address);
		end = start + PAGE;
		if (!memory_ask_map(self, start, end, area->prot))
			memory_is_out(self);
	}
	memory_note_pages(self, start, end);
out:
	unlock(&memory_lock);
	return result;
}

s32 memory_prot(struct thread *self, u64 address)
{
	struct area *area;
	s32 prot = -1;

	lock(self, &memory_lock);
	area = area_number(area_after(address));
	if (area && area->start <= address)
		prot = (s32)area->prot;
	unlock(&memory_lock);
	return prot;
}
