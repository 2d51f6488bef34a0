/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Which instructions the trap of a branch single step comes behind. */
#ifndef VEIL_BRANCH_STEPS_H
#define VEIL_BRANCH_STEPS_H

#include "core.h"

/* Has the one instruction of this block, which is done, transferred control? A conditional branch to what follows it
 * counts as one that was not taken. */
bool veil_is_control_transfer(const struct veil_engine *e, const TranslationBlock *tb);

#endif
