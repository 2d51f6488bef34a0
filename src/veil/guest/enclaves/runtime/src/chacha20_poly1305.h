/* SPDX-License-Identifier: GPL-2.0-or-later */
/* ChaCha20 and Poly1305 (RFC 8439): what needs no other registers than the runtime may use. */
#ifndef RUNTIME_CHACHA20_POLY1305_H
#define RUNTIME_CHACHA20_POLY1305_H

#include "runtime.h"

#define SEAL_KEY 32
#define SEAL_NONCE 12
#define SEAL_TAG 16

/* Encrypt in place; the tag is of `extra`, too. */
void seal(const u8 key[SEAL_KEY], const u8 nonce[SEAL_NONCE], const u8 *extra, u64 extra_bytes, u8 *data, u64 bytes,
	  u8 tag[SEAL_TAG]);
/* Decrypt in place; false, and nothing done, if the tag is another. */
bool unseal(const u8 key[SEAL_KEY], const u8 nonce[SEAL_NONCE], const u8 *extra, u64 extra_bytes, u8 *data, u64 bytes,
	    const u8 tag[SEAL_TAG]);

#endif
