/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Address spaces whose translations are kept while others run. */
#ifndef VEIL_SPACES_H
#define VEIL_SPACES_H

#include "core.h"

void veil_spaces_init(struct veil_engine *e);
void veil_spaces_free(struct veil_engine *e);
/* All of memory was replaced. */
void veil_spaces_forget(struct veil_engine *e);
/* No translation is known any more, of any context. */
void veil_spaces_drop(struct veil_engine *e);
/* The TLB becomes that of the context in e->vmsa, which is about to run; or as it was left. */
void veil_space_enter(struct veil_engine *e);
void veil_space_leave(struct veil_engine *e);
/* The jump cache has no block of the loaded space any more, of the lower half of its addresses or of both. */
void veil_forget_jumps(struct veil_engine *e, bool high);
/* EFER as the guest has it. */
uint64_t veil_guest_efer(const struct veil_vmsa *v);

#endif
