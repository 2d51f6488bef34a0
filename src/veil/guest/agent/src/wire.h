/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The agent's frames. veil/guest/agent/protocol.py is the other end and says what each frame means.
 *
 * A frame is a header of 16 bytes (little-endian) and a payload: u32 magic, u32 payload length, u16 type, u16 stream,
 * u32 job. The magic is for finding back into step after bytes that are no frame.
 */
#ifndef VEIL_WIRE_H
#define VEIL_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	WIRE_MAGIC = 0x4c494556, /* "VEIL" */
	WIRE_VERSION = 1,
	HEADER_SIZE = 16,
	MAX_PAYLOAD = 256 * 1024,
	DATA_CHUNK = 32 * 1024, /* virtio-console moves at most this much per write */
	WINDOW = 256 * 1024,
	TX_SOFT_LIMIT = 128 * 1024,
};

enum frame_type {
	FROM_HOST_HELLO = 1,
	FROM_HOST_EXEC,
	FROM_HOST_DATA,
	FROM_HOST_END,
	FROM_HOST_SIGNAL,
	FROM_HOST_RESIZE,
	FROM_HOST_CREDIT,
	FROM_HOST_PUT,
	FROM_HOST_GET,
	FROM_HOST_PING,

	TO_HOST_HELLO = 64,
	TO_HOST_STARTED,
	TO_HOST_DATA,
	TO_HOST_EXIT,
	TO_HOST_FAILED,
	TO_HOST_CREDIT,
	TO_HOST_FILE,
	TO_HOST_GARBAGE,
	TO_HOST_PONG,
};

struct header {
	uint32_t magic;
	uint32_t length;
	uint16_t type;
	uint16_t stream;
	uint32_t job;
};
_Static_assert(sizeof(struct header) == HEADER_SIZE, "the header is a wire format");

/* A byte queue: what is in use are `length` bytes from `start`. */
struct buffer {
	uint8_t *bytes;
	size_t start, length, capacity;
};

uint8_t *buffer_reserve(struct buffer *buffer, size_t more);
void buffer_append(struct buffer *buffer, const void *data, size_t size);
void buffer_consume(struct buffer *buffer, size_t size);
void buffer_free(struct buffer *buffer);

/* The frames that wait to be sent. */
extern struct buffer tx;

bool tx_has_room(void);
void send_frame(enum frame_type type, unsigned int stream, uint32_t job, const void *payload, size_t size);
void send_failed(uint32_t job, int error, const char *what);
void send_garbage(uint32_t job, const char *what);

/* The next whole frame in `rx`, or NULL: more bytes are needed. The frame stays valid until the next call. */
const struct header *next_frame(struct buffer *rx);

_Noreturn void die(const char *what);

#endif
