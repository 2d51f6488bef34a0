/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Process 1 of the guest. */
#ifndef VEIL_PROCESS1_H
#define VEIL_PROCESS1_H

/* Brings up the system, starts the agent, and powers off when that ends. */
_Noreturn void run_as_process1(void);

#endif
