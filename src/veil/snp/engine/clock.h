/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Time: the guest's TSC, and the thread that ends a VMRUN at its deadline. */
#ifndef VEIL_CLOCK_H
#define VEIL_CLOCK_H

#include "core.h"

uint64_t veil_monotonic_ns(void);
uint64_t veil_engine_tsc(struct veil_engine *e);
int veil_ticker_start(struct veil_engine *e);
void veil_ticker_finish(struct veil_engine *e);
void veil_ticker_resume(struct veil_engine *e);

#endif
