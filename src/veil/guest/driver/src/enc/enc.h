/* SPDX-License-Identifier: GPL-2.0 */
/* VeilS-ENC's part of the driver: what its files share. */
#ifndef VEIL_ENC_H
#define VEIL_ENC_H

#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/types.h>
#include <linux/xarray.h>

#include "device.h"

#define VEIL_ENC_SERVICE 3
/* veil/formats/enclave_calls.py: CONTENT_PAGES. */
#define VEIL_ENC_CONTENT_PAGES 1024

/* veil/formats/enclave_calls.py: EnclaveCall. */
enum veil_enclave_call {
	VEIL_ENCLAVE_CALL_CREATE = 0,
	VEIL_ENCLAVE_CALL_DONATE = 1,
	VEIL_ENCLAVE_CALL_WINDOW = 2,
	VEIL_ENCLAVE_CALL_ADD = 3,
	VEIL_ENCLAVE_CALL_FINISH = 4,
	VEIL_ENCLAVE_CALL_SERVE = 5,
	VEIL_ENCLAVE_CALL_DESTROY = 6,
	VEIL_ENCLAVE_CALL_RECLAIM = 7,
	VEIL_ENCLAVE_CALL_RETURN = 8,
	VEIL_ENCLAVE_CALL_INTERRUPT = 9,
};

struct veil_pages;

struct veil_enclave_slot {
	/* Held by who runs it. */
	struct mutex lock;
	struct veil_pages *window;
	/* GPA of its VMSA. */
	u64 context;
	/* Where its next page fault is if it goes on as before, and how many pages came with the last. */
	u64 next;
	u32 ahead;
};

struct file;
struct veil_enclave_user;

struct veil_enclave {
	/* Held while it is made, and while pages come and go. */
	struct mutex lock;
	/* Of all that are finished; then of those whose pages the host keeps. */
	struct list_head list;
	/* The last search for pages in which it had none. */
	u64 round;
	/* By page number: pages that it has, or may have. They are freed when the service has given all of them back. */
	struct xarray pages;
	long page_count;
	/* By page number of its address space: pages that the kernel has of it, encrypted. */
	struct xarray away;
	/* Of those, most, each at its address: may be swapped. */
	struct file *store;
	bool created, finished;
	/* Whose bounds it keeps, NULL if nobody's; whether it counts among the user's, and pages of the user's that it has. */
	struct veil_enclave_user *user;
	u32 counted;
	u64 charged;
	/* No content any more: each that fails may leave pages with the service, and a process could go on for ever. */
	bool failed;
	u32 number, slot_count, window_pages;
	struct veil_enclave_slot slots[VEIL_ENC_MAX_SLOTS];
};

/* enc.c: all of it, for the driver's table */
int veil_enc_begin(void);
void veil_enc_end(void);
int veil_enc_state(char *text, size_t size);

/* ask.c: the calls; 0 or an error as in device.h */
int veil_enclave_ask(enum veil_enclave_call call, const struct veil_pages *pages, const void *body, size_t length,
		     void *answer, size_t room, size_t *answered);

/* memory.c: knows none of the files below */
/* One page or more of the kernel's become the enclave's, at most so many; false if the kernel has none. The enclave's lock is
 * held. */
bool veil_enclave_attach_run(struct veil_enclave *enclave, struct veil_pages *pages, size_t most);
/* Those that the service never had; the list too. */
void veil_enclave_free_pages(struct veil_enclave *enclave, struct veil_pages *pages);
/* All pages of the enclave. */
void veil_enclave_free(struct veil_enclave *enclave);
/* A page that it has no longer; NULL if it never had it. */
struct page *veil_enclave_detach(struct veil_enclave *enclave, u64 gpa);
void *veil_enclave_page(const struct veil_pages *pages, size_t at);
/* That all enclaves have. */
long veil_enclaves_pages(void);

/* away.c */
/* The page, encrypted, is the kernel's; the enclave has it at this address. */
void veil_enclave_keep_away(struct veil_enclave *enclave, u64 address, struct page *page);
bool veil_enclave_is_away(struct veil_enclave *enclave, u64 address);
int veil_enclave_read_away(struct veil_enclave *enclave, u64 address, void *to);
void veil_enclave_forget_away(struct veil_enclave *enclave, u64 address);
void veil_enclave_free_away(struct veil_enclave *enclave);

struct veil_paging_state {
	u64 reclaimed, returned, requests;
};

/* reclaim.c */
/* Pages of the enclave that are to be the kernel's again, its lock is held; gives how many, or an error. */
long veil_enclave_reclaim(struct veil_enclave *enclave, size_t count);
void veil_enclave_reclaim_state(struct veil_paging_state *state);

/* pressure.c */
int veil_enclave_pressure_begin(void);
void veil_enclave_pressure_end(void);
void veil_enclave_may_be_reclaimed(struct veil_enclave *enclave);
void veil_enclave_forget(struct veil_enclave *enclave);
/* From those that have the most; gives how many pages. `own`: whose lock is held, or NULL. */
long veil_enclaves_reclaim(struct veil_enclave *own, size_t count);
/* For pages that an enclave gets now, if memory is short. */
void veil_enclaves_make_room(struct veil_enclave *own, size_t count);

/* users.c: an enclave that is opened, and one that is gone */
int veil_enclave_user_begin(struct veil_enclave *enclave);
void veil_enclave_user_end(struct veil_enclave *enclave);
/* EDQUOT: its user may have no more. */
int veil_enclave_count(struct veil_enclave *enclave);
int veil_enclave_charge(struct veil_enclave *enclave, u64 pages);
/* Pages that it did not get after all. */
void veil_enclave_uncharge(struct veil_enclave *enclave, u64 pages);

/* allocate.c */
/* An error pointer if there are too few. The list is to be freed with kvfree; the pages are the enclave's until the service
 * gives them back. The enclave's lock is held. */
struct veil_pages *veil_enclave_allocate(struct veil_enclave *enclave, size_t count);
/* The same, for pages that it has given before: they count for its user still. */
struct veil_pages *veil_enclave_allocate_again(struct veil_enclave *enclave, size_t count);

/* return.c */
/* The page at this address of the enclave comes back, and others that this slot may need next. */
int veil_enclave_return(struct veil_enclave *enclave, u32 slot, u64 address);
void veil_enclave_return_state(struct veil_paging_state *state);

/* make.c */
int veil_enclave_create(struct veil_enclave *enclave, struct veil_enclave_create *create);
int veil_enclave_add(struct veil_enclave *enclave, const struct veil_enclave_add *add);
int veil_enclave_finish(struct veil_enclave *enclave, struct veil_enclave_finish *finish);
/* Pages whose content does not matter; the enclave's lock is held. */
int veil_enclave_donate(struct veil_enclave *enclave, u64 count);

/* release.c */
/* Gives everything back, and is rid of it; what the host keeps is asked for again later. */
void veil_enclave_destroy(struct veil_enclave *enclave);
/* Enclaves that have ended, of which the host keeps something. */
int veil_enclaves_stuck(void);
void veil_enclaves_release_end(void);

/* run.c */
int veil_enclave_enter(struct veil_enclave *enclave, struct veil_enclave_enter *enter);
u64 veil_enclave_entries(void);

#endif
