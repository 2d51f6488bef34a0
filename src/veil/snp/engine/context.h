/* SPDX-License-Identifier: GPL-2.0-or-later */
/* VMSA page <-> CPU state. */
#ifndef VEIL_CONTEXT_H
#define VEIL_CONTEXT_H

#include "core.h"

void veil_context_load(struct veil_engine *e);
void veil_context_save(struct veil_engine *e);

#endif
