/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "areas.h"

#define FIRST_SPACE 512

static struct area *areas;
static u32 count, space;

u32 area_after(u64 address)
{
	u32 low = 0, high = count;

	while (low < high) {
		u32 middle = (low + high) / 2;

		if (areas[middle].end > address)
			high = middle;
		else
			low = middle + 1;
	}
	return low;
}

struct area *area_number(u32 number)
{
	return number < count ? &areas[number] : NULL;
}

static bool make_space(struct thread *self)
{
	u32 wanted = space ? 2 * space : FIRST_SPACE;
	struct area *bigger;

	if (count < space)
		return true;
	bigger = heap_take(self, wanted * sizeof(*areas));
	if (!bigger)
		return false;
	if (count)
		memcpy(bigger, areas, count * sizeof(*areas));
	heap_give(self, areas);
	areas = bigger;
	space = wanted;
	return true;
}

static bool insert(struct thread *self, u32 at, struct area area)
{
	if (!make_space(self))
		return false;
	memmove(&areas[at + 1], &areas[at], (count - at) * sizeof(*areas));
	areas[at] = area;
	count++;
	return true;
}

static bool cut_at(struct thread *self, u64 address)
{
	u32 at = area_after(address);
	struct area rest;

	if (at == count || areas[at].start >= address)
		return true;
	rest = areas[at];
	rest.start = address;
	if (!insert(self, at + 1, rest))
		return false;
	areas[at].end = address;
	return true;
}

bool area_cut(struct thread *self, u64 start, u64 end)
{
	return cut_at(self, start) && cut_at(self, end);
}

bool area_add(struct thread *self, struct area area)
{
	return insert(self, area_after(area.start), area);
}

void area_remove(u64 start, u64 end)
{
	u32 first = area_after(start), last = first;

	while (last < count && areas[last].end <= end)
		last++;
	if (first == last)
		return;
	memmove(&areas[first], &areas[last], (count - last) * sizeof(*areas));
	count -= last - first;
}

static bool alike(const struct area *a, const struct area *b)
{
	return a->end == b->start && a->prot == b->prot && a->resident == b->resident && a->file == b->file &&
	       a->source == b->source && a->origin == b->origin;
}

void area_join(u64 start, u64 end)
{
	u32 at = area_after(start);

	at -= at ? 1 : 0;
	while (at + 1 < count && areas[at].start <= end) {
		if (!alike(&areas[at], &areas[at + 1])) {
			at++;
			continue;
		}
		areas[at].end = areas[at + 1].end;
		memmove(&areas[at + 1], &areas[at + 2], (count - at - 2) * sizeof(*areas));
		count--;
	}
}

bool area_free(u64 start, u64 end)
{
	u32 at = area_after(start);

	return at == count || areas[at].start >= end;
}

u64 area_find(u64 bytes, u64 from, u64 to)
{
	u64 place = from;

	for (u32 at = area_after(from); at < count && areas[at].start < to; at++) {
		if (areas[at].start >= place && areas[at].start - place >= bytes)
			break;
		place = most(place, areas[at].end);
	}
	return to > place && to - place >= bytes ? place : 0;
}
