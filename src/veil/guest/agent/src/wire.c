/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "wire.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct buffer tx;

/* The length of the frame last handed out, still at the front of the receive queue. */
static size_t handed_out;
static bool in_garbage;

void die(const char *what)
{
	fprintf(stderr, "veil-agent: %s: %s\n", what, strerror(errno));
	exit(1);
}

uint8_t *buffer_reserve(struct buffer *buffer, size_t more)
{
	if (buffer->start && buffer->start + buffer->length + more > buffer->capacity) {
		memmove(buffer->bytes, buffer->bytes + buffer->start, buffer->length);
		buffer->start = 0;
	}
	if (buffer->length + more > buffer->capacity) {
		size_t capacity = 2 * (buffer->length + more);
		uint8_t *bytes = realloc(buffer->bytes, capacity);

		if (!bytes)
			die("memory");
		buffer->bytes = bytes;
		buffer->capacity = capacity;
	}
	return buffer->bytes + buffer->start + buffer->length;
}

void buffer_append(struct buffer *buffer, const void *data, size_t size)
{
	if (!size)
		return;
	memcpy(buffer_reserve(buffer, size), data, size);
	buffer->length += size;
}

void buffer_consume(struct buffer *buffer, size_t size)
{
	buffer->start += size;
	buffer->length -= size;
	if (!buffer->length)
		buffer->start = 0;
}

void buffer_free(struct buffer *buffer)
{
	free(buffer->bytes);
	memset(buffer, 0, sizeof(*buffer));
}

bool tx_has_room(void)
{
	return tx.length < TX_SOFT_LIMIT;
}

void send_frame(enum frame_type type, unsigned int stream, uint32_t job, const void *payload, size_t size)
{
	struct header header = {
		.magic = WIRE_MAGIC,
		.length = (uint32_t)size,
		.type = (uint16_t)type,
		.stream = (uint16_t)stream,
		.job = job,
	};

	buffer_append(&tx, &header, sizeof(header));
	buffer_append(&tx, payload, size);
}

static void send_text(enum frame_type type, uint32_t job, uint32_t number, const char *text)
{
	uint8_t payload[4 + 256];
	size_t length = strnlen(text, 256);

	memcpy(payload, &number, 4);
	memcpy(payload + 4, text, length);
	send_frame(type, 0, job, payload, 4 + length);
}

void send_failed(uint32_t job, int error, const char *what)
{
	char text[256];

	snprintf(text, sizeof(text), "%.200s: %s", what, strerror(error));
	send_text(TO_HOST_FAILED, job, (uint32_t)error, text);
}

void send_garbage(uint32_t job, const char *what)
{
	send_text(TO_HOST_GARBAGE, job, 0, what);
}

static bool plausible(const struct header *header)
{
	return header->magic == WIRE_MAGIC && header->length <= MAX_PAYLOAD && header->type >= FROM_HOST_HELLO &&
	       header->type <= FROM_HOST_PING && header->stream <= 2;
}

const struct header *next_frame(struct buffer *rx)
{
	static struct header header;

	buffer_consume(rx, handed_out);
	handed_out = 0;
	while (rx->length >= HEADER_SIZE) {
		memcpy(&header, rx->bytes + rx->start, HEADER_SIZE);
		if (!plausible(&header)) {
			/* Told once for each run of such bytes: an answer to every byte would be a flood. */
			if (!in_garbage)
				send_garbage(0, "received bytes that are no frame");
			in_garbage = true;
			buffer_consume(rx, 1);
			continue;
		}
		in_garbage = false;
		if (rx->length < HEADER_SIZE + header.length)
			return NULL;
		handed_out = HEADER_SIZE + header.length;
		return (const struct header *)(const void *)(rx->bytes + rx->start);
	}
	return NULL;
}
