/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Rights that the RMP took away. */
#ifndef VEIL_RIGHTS_H
#define VEIL_RIGHTS_H

#include "core.h"

void veil_forget_lost_rights(struct veil_engine *e);
/* The TLB and the jump cache forget what the RMP does not allow any more since the loaded space last looked. */
static inline void veil_follow_rights(struct veil_engine *e)
{
    if (unlikely(e->space->rmp_generation != e->rmp->generation)) {
        veil_forget_lost_rights(e);
    }
}

#endif
