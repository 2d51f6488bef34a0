/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * poll, select, epoll. Only events that were asked for come back; and what a program keeps with a descriptor in an
 * epoll set, mostly a pointer, never leaves the enclave: outside it is the descriptor's number.
 */
#include "files.h"
#include "handlers.h"
#include "limits.h"
#include "machine.h"

#define MOST_POLLED 4096
#define ALWAYS_REPORTED 0x38 /* POLLERR, POLLHUP, POLLNVAL */
#define MOST_SELECTED 1024
#define MOST_EVENTS 1024
#define EPOLL_ALWAYS 0x18
#define EPOLL_ADD 1
#define EPOLL_DELETE 2
#define DESCRIPTOR_WORDS ((DESCRIPTORS + 63) / 64)
#define EPOLL_MODIFY 3
#define EPOLL_ONE_SHOT ((u32)1 << 30)

struct polled {
	s32 fd;
	s16 events, revents;
};

struct epoll_event {
	u32 events;
	u64 data;
} __attribute__((packed));

/* What an epoll descriptor watches, or has watched: an event of before may be on its way. */
struct epoll_entry {
	struct epoll_entry *next;
	struct open_file *file; /* NULL: not any more, as it was taken out or closed */
	s32 fd;
	u32 events;
	u64 data;
	u32 shots; /* reports that may come, of one that comes once until it is changed */
};

/* A new signal mask for as long as the call waits; it goes back when the call ends, after a handler. */
static s64 mask_for_wait(struct thread *self, u64 place)
{
	u64 mask;

	if (!place)
		return 0;
	if (copy_in(&mask, place, sizeof(mask)))
		return -EFAULT;
	self->mask_before = self->mask;
	self->mask_kept = true;
	self->mask = mask & ~(SIGNAL_BIT(SIGKILL) | SIGNAL_BIT(SIGSTOP));
	return signal_waits(self) ? -EINTR : 0;
}

static s64 poll_outside(struct thread *self, u64 place, u64 count, u64 nr, struct limit *limit)
{
	u64 bytes = count * sizeof(struct polled);
	struct polled *shared = take_buffer(self, bytes), *own = heap_take(self, bytes);
	s64 result, found = 0;

	if (!shared || !own || copy_in(own, place, bytes)) {
		heap_give(self, own);
		return shared && own ? -EFAULT : -ENOMEM;
	}
	for (u64 i = 0; i < count; i++) {
		shared[i] = own[i];
		/* Not a number of the process's own. */
		if (own[i].fd >= 0 && !is_open(own[i].fd))
			shared[i].fd = DESCRIPTORS;
	}
	do {
		result = outside(self, nr, (u64)shared, count, limit_rest(limit), 0, 8, 0);
		if (result > (s64)count)
			attacked(self, "poll of %d descriptors is answered by %d", count, (u64)result);
		for (u64 i = 0; i < count; i++) {
			own[i].revents = 0;
			if (result <= 0 || own[i].fd < 0)
				continue;
			own[i].revents = (s16)(READ_ONCE(shared[i].revents) & (own[i].events | ALWAYS_REPORTED));
			found += own[i].revents ? 1 : 0;
		}
	} while (limit_goes_on(self, limit, found, &result));
	if (result >= 0)
		result = copy_out(place, own, bytes) ?: found;
	heap_give(self, own);
	return result;
}

HANDLER(do_poll)
{
	struct limit limit;

	if ((u32)a[1] > MOST_POLLED)
		return -EINVAL;
	limit_milliseconds(self, &limit, (s32)a[2]);
	return poll_outside(self, a[0], (u32)a[1], 7, &limit);
}

HANDLER(do_ppoll)
{
	struct limit limit;
	s64 result = limit_from(self, &limit, a[2], PART_NANOSECOND);

	if ((u32)a[1] > MOST_POLLED)
		return -EINVAL;
	result = result ?: mask_for_wait(self, a[3]);
	return result ?: poll_outside(self, a[0], (u32)a[1], 271, &limit);
}

static s64 select_outside(struct thread *self, const u64 *a, u64 nr, struct limit *limit)
{
	u64 own[3][MOST_SELECTED / 64] = { 0 }, got[3][MOST_SELECTED / 64], *shared[3] = { 0 };
	u64 words = (a[0] + 63) / 64;
	s64 result, found = 0;

	if (a[0] > MOST_SELECTED)
		return -EINVAL;
	for (u32 i = 0; i < 3; i++) {
		if (!a[i + 1])
			continue;
		shared[i] = take_buffer(self, sizeof(own[i]));
		if (copy_in(own[i], a[i + 1], words * sizeof(u64)))
			return -EFAULT;
		for (u64 fd = 0; fd < a[0]; fd++)
			if (own[i][fd / 64] >> fd % 64 & 1 && !is_open((s32)fd))
				return -EBADF;
	}
	do {
		for (u32 i = 0; i < 3; i++)
			if (shared[i])
				memcpy(shared[i], own[i], sizeof(own[i]));
		result = outside(self, nr, a[0], (u64)shared[0], (u64)shared[1], (u64)shared[2], limit_rest(limit), 0);
		if (result > (s64)(3 * a[0]))
			attacked(self, "select of %d descriptors is answered by %d", a[0], (u64)result);
		memset(got, 0, sizeof(got));
		for (u32 at = 0; result > 0 && at < 3 * words; at++) {
			const u32 i = at / (u32)words, word = at % (u32)words;

			got[i][word] = shared[i] ? own[i][word] & READ_ONCE(shared[i][word]) : 0;
			for (u64 bits = got[i][word]; bits; bits &= bits - 1)
				found++;
		}
	} while (limit_goes_on(self, limit, found, &result));
	for (u32 i = 0; result >= 0 && i < 3; i++)
		if (shared[i] && copy_out(a[i + 1], got[i], words * sizeof(u64)))
			return -EFAULT;
	return result < 0 ? result : found;
}

HANDLER(do_select)
{
	struct limit limit;
	s64 result = limit_from(self, &limit, a[4], PART_MICROSECOND);

	return result ?: select_outside(self, a, 23, &limit);
}

HANDLER(do_pselect)
{
	u64 mask[2] = { 0 };
	struct limit limit;
	s64 result = limit_from(self, &limit, a[4], PART_NANOSECOND);

	if (!result && a[5])
		result = copy_in(mask, a[5], sizeof(mask)) ?: mask_for_wait(self, mask[0]);
	return result ?: select_outside(self, a, 270, &limit);
}

HANDLER(do_epoll_create)
{
	s64 fd;

	fd = outside(self, 291, self->regs.rax == 291 ? a[0] : 0, 0, 0, 0, 0, 0);
	return fd < 0 ? fd : new_descriptor(self, fd, NULL);
}

/* All sets that watch something, or did. */
static struct open_file *sets;
static struct lock watched_lock;

static void drop_set(struct thread *self, struct open_file *set)
{
	struct open_file **link = &sets;

	while (*link != set)
		link = &(*link)->next_set;
	*link = set->next_set;
	while (set->watched) {
		struct epoll_entry *entry = set->watched;

		set->watched = entry->next;
		heap_give(self, entry);
	}
}

/* A program frees what it keeps with a file when it has closed the last descriptor of it: no set tells of that again. */
void forget_watched(struct thread *self, struct open_file *file)
{
	if (!file->watched && !file->was_watched)
		return;
	lock(self, &watched_lock);
	if (file->watched)
		drop_set(self, file);
	for (struct open_file *set = sets; set; set = set->next_set)
		for (struct epoll_entry *entry = set->watched; entry; entry = entry->next)
			if (entry->file == file)
				entry->file = NULL;
	unlock(&watched_lock);
}

static struct epoll_entry *find_watched(const struct open_file *set, u64 fd)
{
	struct epoll_entry *entry = set->watched;

	while (entry && (u64)entry->fd != fd)
		entry = entry->next;
	return entry;
}

static struct epoll_entry *add_watched(struct thread *self, struct open_file *set, s32 fd)
{
	struct epoll_entry *entry = heap_take(self, sizeof(*entry));

	if (!entry)
		return NULL;
	if (!set->watched) {
		set->next_set = sets;
		sets = set;
	}
	entry->fd = fd;
	entry->next = set->watched;
	set->watched = entry;
	return entry;
}

static s64 control_outside(struct thread *self, const u64 *a, u32 events)
{
	struct epoll_event *shared = take_buffer(self, sizeof(*shared));

	*shared = (struct epoll_event){ events, (u32)a[2] };
	return outside_done(self, 233, a[0], a[1], a[2], (u64)shared, 0, 0);
}

/* An entry stays where it is as long as the set is used. */
static s64 watch(struct thread *self, struct open_file *set, struct open_file *file, const u64 *a)
{
	struct epoll_entry *entry, before = { 0 };
	struct epoll_event event;
	s64 result;

	if (copy_in(&event, a[3], sizeof(event)))
		return -EFAULT;
	lock(self, &watched_lock);
	entry = find_watched(set, a[2]) ?: add_watched(self, set, (s32)a[2]);
	if (entry) {
		before = *entry;
		/* Known before the kernel may report it. */
		entry->file = file;
		entry->events = event.events;
		entry->data = event.data;
		/* The last report may be in the hands of a thread that waits. */
		entry->shots = set->waiters && entry->shots ? 2 : 1;
		file->was_watched = true;
	}
	unlock(&watched_lock);
	if (!entry)
		return -ENOMEM;
	result = control_outside(self, a, event.events);
	if (!result)
		return 0;
	lock(self, &watched_lock);
	entry->file = before.file;
	entry->events = before.events;
	entry->data = before.data;
	entry->shots = before.shots;
	unlock(&watched_lock);
	return result;
}

static s64 watch_no_more(struct thread *self, struct open_file *set, const u64 *a)
{
	s64 result = control_outside(self, a, 0);
	struct epoll_entry *entry;

	if (result)
		return result;
	lock(self, &watched_lock);
	entry = find_watched(set, a[2]);
	if (entry)
		entry->file = NULL;
	unlock(&watched_lock);
	return 0;
}

HANDLER(do_epoll_ctl)
{
	const u64 own[6] = { a[0], a[1], (u32)a[2], a[3] };
	struct open_file *set = use(self, (s32)a[0]), *file = use(self, (s32)a[2]);
	s64 result;

	if (!set || !file)
		result = -EBADF;
	else if (a[1] < EPOLL_ADD || a[1] > EPOLL_MODIFY)
		result = -EINVAL;
	else
		result = a[1] == EPOLL_DELETE ? watch_no_more(self, set, own) : watch(self, set, file, own);
	release(self, set);
	release(self, file);
	return result;
}

/*
 * What the program hears of one report. A program that has been told of a connection frees it, or gives it to a thread: it must
 * not hear of it a second time in one answer, nor, if it comes once, before it asks again.
 */
static struct epoll_event take_event(struct thread *self, const struct open_file *set, const struct epoll_event *got,
				     u64 seen[DESCRIPTOR_WORDS])
{
	struct epoll_event event = { 0 };
	struct epoll_entry *entry;

	lock(self, &watched_lock);
	entry = find_watched(set, got->data);
	if (entry && entry->file && !(seen[got->data / 64] >> got->data % 64 & 1)) {
		seen[got->data / 64] |= (u64)1 << got->data % 64;
		event = (struct epoll_event){ got->events & (entry->events | EPOLL_ALWAYS), entry->data };
		if (event.events && entry->events & EPOLL_ONE_SHOT && !entry->shots--) {
			entry->shots = 0;
			event.events = 0;
		}
	}
	unlock(&watched_lock);
	if (!entry)
		attacked(self, "epoll reports %x, which nobody watches", got->data);
	return event;
}

static s64 take_events(struct thread *self, const struct open_file *set, const struct epoll_event *shared, s64 count,
		       u64 to)
{
	u64 seen[DESCRIPTOR_WORDS] = { 0 };
	s64 done = 0;

	for (s64 i = 0; i < count; i++) {
		struct epoll_event got, event;

		/* Once: a compiler that knows memcpy would be free to read it again. */
		memcpy(&got, &shared[i], sizeof(got));
		order_writes();
		event = take_event(self, set, &got, seen);
		if (!event.events)
			continue;
		if (copy_out(to + (u64)done * sizeof(event), &event, sizeof(event)))
			return -EFAULT;
		done++;
	}
	return done;
}

static void count_waiter(struct thread *self, struct open_file *set, s32 more)
{
	lock(self, &watched_lock);
	set->waiters += (u32)more;
	unlock(&watched_lock);
}

/* An event that is not the program's is no answer: some programs take "none" for a time that has passed. */
static s64 wait_for_events(struct thread *self, struct open_file *set, const u64 *a, struct epoll_event *shared,
			   u64 count)
{
	struct limit limit;
	s64 result, found = 0;

	count_waiter(self, set, 1);
	limit_milliseconds(self, &limit, (s32)a[3]);
	do {
		result = outside(self, 232, a[0], (u64)shared, count, limit_rest(&limit), 0, 0);
		if (result > (s64)count)
			attacked(self, "epoll_wait for %d events is answered by %d", count, (u64)result);
		if (result > 0)
			found = take_events(self, set, shared, result, a[1]);
	} while (limit_goes_on(self, &limit, found, &result));
	count_waiter(self, set, -1);
	return result < 0 ? result : found;
}

HANDLER(do_epoll_wait)
{
	struct open_file *set = use(self, (s32)a[0]);
	u64 count = least((u32)a[2], MOST_EVENTS);
	struct epoll_event *shared = take_buffer(self, count * sizeof(*shared));
	s64 result = 0;

	if (!set)
		return -EBADF;
	if ((s32)a[2] <= 0 || !shared)
		result = -EINVAL;
	else if (self->regs.rax == 281)
		result = mask_for_wait(self, a[4]);
	result = result ?: wait_for_events(self, set, a, shared, count);
	release(self, set);
	return result;
}
