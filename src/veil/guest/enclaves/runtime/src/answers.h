/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Of system calls below this number a thread may know the answer: thread.h and entry.S. */
#ifndef RUNTIME_ANSWERS_H
#define RUNTIME_ANSWERS_H

#define ANSWERED_CALLS 187

#endif
