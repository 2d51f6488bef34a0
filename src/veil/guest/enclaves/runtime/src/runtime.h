/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the modules offer each other. */
#ifndef RUNTIME_H
#define RUNTIME_H

#include "base.h"
#include "config.h"
#include "thread.h"

/* entry.S, memory_access.S; or what plays their part on a host */
void leave(struct thread *);
_Noreturn void resume(struct thread *);
_Noreturn void run_on_fresh_stack(struct thread *, void (*)(struct thread *));
bool copy_user(void *to, const void *from, u64 bytes);
bool swap_user(u32 *place, u32 old, u32 new, u32 *found);
void *memcpy(void *, const void *, size_t);
void *memset(void *, int, size_t);
void *memmove(void *, const void *, size_t);
int memcmp(const void *, const void *, size_t);
extern const char copy_user_site[], copy_user_fault[], swap_user_site[], swap_user_fault[];
extern const char peek_site[], peek_fault[];

/* machine.h has: read_tsc, random_word, set_fs_base, fp_save, ... */

/* events.c */
void event_of_program(struct thread *);
struct frame {
	u64 vector, error, rip, cs, rflags, rsp, ss;
};
void event_in_runtime(struct thread *, struct frame *);
/* Put an address into CR2 that no fault has, so that the last one cannot be played again. */
void forget_fault_address(struct thread *);

/* start.c */
_Noreturn void slot_main(u32 slot);

/* window.c: the way out. Results are checked to be a value that a system call can have. */
struct veil_window_block *block_of(u32 slot);
void *take_buffer(struct thread *, u64 bytes);
u64 buffer_left(const struct thread *);
/* Behind it: for one chunk of a trusted file, which a page fault may need in the middle of a call. */
void *chunk_buffer(struct thread *);
s64 outside(struct thread *, u64 nr, u64 a0, u64 a1, u64 a2, u64 a3, u64 a4, u64 a5);
/* A call that gives 0 or an error: a program takes what is above 0 for a success, whose results are not there. */
s64 outside_done(struct thread *, u64 nr, u64 a0, u64 a1, u64 a2, u64 a3, u64 a4, u64 a5);
s64 ask_window(struct thread *, u32 state, u64 a0, u64 a1);
_Noreturn void end_enclave(struct thread *, int status, int signal);
/* By the runtime, not by its program: a line in the log says why. */
_Noreturn void end_because(struct thread *, enum veil_end_reason);
_Noreturn void end_thread(struct thread *);
void wait_for_word(struct thread *, const s64 *timeout, s64 *result);
/* Before the look whether there is anything to wait for. */
void clear_word(struct thread *);
void give_word(struct thread *self, struct thread *other);

/* mailbox.c: what VeilS-ENC is asked. Statuses are the service's; 0 is good. */
enum { STATUS_OK = 0, STATUS_UNAVAILABLE = 5 };
#define LONGEST_SECRET 0xfc0 /* as much as a mailbox holds */
u32 ask_service(struct thread *, u32 call, u64 a0, u64 a1, u64 a2, u64 *result);
/* CR2. If it is in the area (address, pages; 0: none) without pages, the service maps those around it: how many, or 0. */
u64 ask_fault(struct thread *, u64 area, u64 area_pages, u32 prot, u64 *start, u64 *pages);
/* Pages with a copy of others, which the runtime has; no thread meets them without it. False: there are too few. */
bool ask_fill(struct thread *, u64 start, u64 pages, u32 prot, const void *from);
bool derive_key(struct thread *, const char *label, u64 length, u8 key[32]);
/* How many bytes; -EAGAIN: it was not sent yet. */
s64 receive_secret(struct thread *, const char *name, u64 length, u8 *to, u64 space);

/* log.c: lines in the protected log, and the end of an enclave that was attacked */
void log_line(struct thread *, const char *text, ...);
_Noreturn void attacked(struct thread *, const char *text, ...);

/* lock.c */
struct lock {
	u32 taken;
};
void lock(struct thread *, struct lock *);
void unlock(struct lock *);

/* user_memory.c: memory of the program's; 0 or -EFAULT */
bool is_user(u64 address, u64 bytes);
s64 copy_in(void *to, u64 from, u64 bytes);
s64 copy_out(u64 to, const void *from, u64 bytes);
s64 clear_out(u64 to, u64 bytes);
/* bytes without the NUL; -EFAULT, or -ENAMETOOLONG if there are `space` and no NUL */
s64 copy_string_in(char *to, u64 from, u64 space);

/* heap.c: the runtime's own memory; 0 if there is no more */
void heap_start(void);
void *heap_take(struct thread *, u64 bytes);
void heap_give(struct thread *, void *);

/* random.c */
void random_bytes(struct thread *, void *to, u64 bytes);

/* memory.c */
void memory_start(void);
s64 memory_map(struct thread *, u64 address, u64 bytes, u32 prot, u32 flags, s32 fd, u64 offset);
s64 memory_unmap(struct thread *, u64 address, u64 bytes);
s64 memory_protect(struct thread *, u64 address, u64 bytes, u32 prot);
s64 memory_advise(struct thread *, u64 address, u64 bytes, u32 advice);
s64 memory_brk(struct thread *, u64 end);
/* After a page fault: where it was; whether pages came there with the answer. */
u64 memory_fault(struct thread *, bool *there);
/* Else: 0 if the access can be made again; -EFAULT, or -EIO if what should be there cannot be read. */
s64 memory_bring(struct thread *, u64 address, u32 needed);
/* prot of what lies there, or -1 */
s32 memory_prot(struct thread *, u64 address);

/* trusted_maps.c: memory_map() of a trusted file, whose pages come when they are touched */
struct config_file;
s64 memory_map_trusted(struct thread *, u64 address, u64 bytes, u32 prot, u32 flags, s32 fd, u64 offset,
		       const struct config_file *source);

/* moving.c */
s64 memory_move(struct thread *, u64 address, u64 old, u64 new, u32 flags, u64 wanted);

/* descriptors.c, paths.c, io.c */
struct open_file;
void descriptors_start(void);
void paths_start(void);
/* Its length, behind which it says how it ends: length_outside(). `to` has room for LONGEST_PATH. */
s64 resolve_path(struct thread *, s32 folder, const char *path, u64 length, char *to, bool follows);
const struct config_rule *rule_of(const char *path, u64 length);
s64 pread_file(struct thread *, s32 fd, u64 to, u64 bytes, u64 offset);

/* offered.c: signals from outside, bit n - 1 for signal n; and a thread that another has something for */
u64 offer_signals(struct thread *, u64 offered); /* those that were taken */
void interrupt_thread(struct thread *self, struct thread *other);

/* signals.c */
extern u64 process_pending; /* of the process, taken by whichever thread does not block them */
s64 signal_self(struct thread *, struct thread *target, s32 number, s32 code);
/* Does the program ignore it? */
bool is_ignored(s32 number);
void fault(struct thread *, s32 number, s32 code, u64 address);
void deliver_signals(struct thread *, s64 restart_call);
bool signal_waits(const struct thread *);
/* To the process: whichever thread does not block them, bit n - 1 for signal n. */
void signal_process(struct thread *, u64 signals);

/* threads.c */
extern struct lock threads_lock;
struct thread *thread_by_number(s32 number);
_Noreturn void thread_exit(struct thread *, s32 status);
u32 threads_count(void);
s32 process_number(struct thread *);

/* futex.c */
u32 futex_wake(struct thread *, u64 address, u32 count, u32 bits);

/* clock.c */
s64 now(struct thread *, u32 clock, s64 to[2]);

/* calls.c */
/* This thread's next call of that number is answered so in entry.S, without another look. */
void remember(struct thread *, u64 nr, s64 answer);
void system_call(struct thread *);
bool call_allowed(u32 nr);
const char *call_name(u32 nr);
void unsupported(struct thread *, const char *what, u64 nr);

/* A system call with its arguments; some need neither. */
#define UNUSED __attribute__((unused))
#define HANDLER(name) s64 name(UNUSED struct thread *self, UNUSED const u64 *a)
typedef s64 (*call_handler)(struct thread *, const u64 *);

#endif
