/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Files to and from the host. */
#ifndef VEIL_FILE_H
#define VEIL_FILE_H

#include "jobs.h"

void put_start(uint32_t number, const uint8_t *payload, size_t size);
void put_data(struct job *job, const uint8_t *data, size_t size);
void put_end(struct job *job);
void get_start(uint32_t number, const uint8_t *payload, size_t size);
void get_pump(struct job *job);

#endif
