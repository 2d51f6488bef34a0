/* SPDX-License-Identifier: GPL-2.0 */
#ifndef INTRUDER_H
#define INTRUDER_H

/* Where something of the kernel's or of a module's is, by its name; NULL if there is nothing of this name. */
void *intruder_lookup(const char *name);

#endif
