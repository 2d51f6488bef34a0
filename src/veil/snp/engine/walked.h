/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Which entries of the guest's page tables the TLB comes from. */
#ifndef VEIL_WALKED_H
#define VEIL_WALKED_H

#include "core.h"

/* A walk whose translation goes into the TLB read these entries; `wide`: of 8 bytes, not 4. */
void veil_walked_add(struct veil_engine *e, const uint64_t *entry_gpas, unsigned levels, bool wide);
/* The TLB has nothing but global entries any more. */
void veil_walked_reset(struct veil_engine *e);
/* Would walks give again what the TLB has? False: perhaps not. */
bool veil_walked_same(const struct veil_engine *e);

#endif
