/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Time: the guest's TSC, and the thread that brings the core out of chained
 * blocks when a deadline passes.
 */
#include "clock.h"

#include <pthread.h>
#include <time.h>

#define TICK_NS 500000
/* Ticks without a vmrun after which the thread sleeps until the next one. */
#define IDLE_TICKS 40

uint64_t veil_monotonic_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* The TSC counts nanoseconds: 1 GHz (TSC_KHZ of veil/formats/tsc.py), which every calibration in a guest gets exactly
 * right. */
uint64_t veil_engine_tsc(struct veil_engine *e)
{
    return veil_monotonic_ns() + e->tsc_offset;
}

void veil_engine_set_tsc_offset(struct veil_engine *e, uint64_t offset)
{
    e->tsc_offset = offset;
}

void veil_engine_kick(struct veil_engine *e)
{
    e->kicked = true;
    /* The only field that generated code looks at; a plain store is what QEMU's own cpu_exit does. */
    atomic_set(&env_cpu(e->env)->icount_decr_ptr->u16.high, -1);
}

static void *tick(void *argument)
{
    struct veil_engine *e = argument;
    const struct timespec period = {.tv_nsec = TICK_NS};
    uint64_t seen = 0;
    unsigned idle = 0;

    for (;;) {
        uint64_t deadline;

        nanosleep(&period, NULL);
        if (e->ticker_stop) {
            return NULL;
        }
        deadline = e->deadline_ns;
        if (e->running && deadline && veil_monotonic_ns() >= deadline) {
            atomic_set(&env_cpu(e->env)->icount_decr_ptr->u16.high, -1);
        }
        idle = seen == e->counters.vmruns && !e->running ? idle + 1 : 0;
        seen = e->counters.vmruns;
        if (idle > IDLE_TICKS) {
            pthread_mutex_lock(&e->ticker_lock);
            __atomic_store_n(&e->ticker_asleep, true, __ATOMIC_SEQ_CST);
            /* Either this sees a vmrun that began meanwhile, or that vmrun sees that it must wake the thread. */
            if (__atomic_load_n(&e->running, __ATOMIC_SEQ_CST)) {
                e->ticker_asleep = false;
            }
            while (e->ticker_asleep && !e->ticker_stop) {
                pthread_cond_wait(&e->ticker_wake, &e->ticker_lock);
            }
            pthread_mutex_unlock(&e->ticker_lock);
            idle = 0;
        }
    }
}

int veil_ticker_start(struct veil_engine *e)
{
    pthread_mutex_init(&e->ticker_lock, NULL);
    pthread_cond_init(&e->ticker_wake, NULL);
    return pthread_create(&e->ticker, NULL, tick, e);
}

/* A vmrun begins. */
void veil_ticker_resume(struct veil_engine *e)
{
    __atomic_store_n(&e->running, true, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&e->ticker_asleep, __ATOMIC_SEQ_CST)) {
        pthread_mutex_lock(&e->ticker_lock);
        e->ticker_asleep = false;
        pthread_cond_signal(&e->ticker_wake);
        pthread_mutex_unlock(&e->ticker_lock);
    }
}

void veil_ticker_finish(struct veil_engine *e)
{
    pthread_mutex_lock(&e->ticker_lock);
    e->ticker_stop = true;
    pthread_cond_signal(&e->ticker_wake);
    pthread_mutex_unlock(&e->ticker_lock);
    pthread_join(e->ticker, NULL);
}
