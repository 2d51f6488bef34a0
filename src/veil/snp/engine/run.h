/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The execution loop. */
#ifndef VEIL_RUN_H
#define VEIL_RUN_H

#include "core.h"

/* Runs the loaded context until an exit is set up. */
void veil_run(struct veil_engine *e);

#endif
