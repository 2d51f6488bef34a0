/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Commands: programs with pipes or a terminal between them and the host. */
#ifndef VEIL_COMMAND_H
#define VEIL_COMMAND_H

#include "jobs.h"

void command_start(uint32_t number, const uint8_t *payload, size_t size);
void command_input(struct job *job, const uint8_t *data, size_t size);
void command_flush_input(struct job *job);
void command_check_exec(struct job *job);
void command_pump(struct job *job, bool out_ready, bool err_ready);
void command_resize(const struct job *job, uint16_t rows, uint16_t columns);
void command_reap(void);

#endif
