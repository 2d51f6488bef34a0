/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Locks between the enclave's threads. The kernel may stop a thread that holds one: who waits lets it run. */
#include "machine.h"
#include "runtime.h"

#define SPINS 100
#define NR_SCHED_YIELD 24

void lock(struct thread *self, struct lock *lock)
{
	for (u32 spins = 0; __atomic_exchange_n(&lock->taken, 1, __ATOMIC_ACQUIRE); spins++) {
		if (spins < SPINS)
			pause_a_moment();
		else
			outside(self, NR_SCHED_YIELD, 0, 0, 0, 0, 0, 0);
	}
}

void unlock(struct lock *lock)
{
	__atomic_store_n(&lock->taken, 0, __ATOMIC_RELEASE);
}
