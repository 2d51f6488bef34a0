/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "chacha20_poly1305.h"

#define BLOCK 64
#define ROUNDS 10
#define LOW_44 (((u64)1 << 44) - 1)
#define LOW_42 (((u64)1 << 42) - 1)

typedef unsigned __int128 u128;

static u32 turn(u32 word, u32 bits)
{
	return word << bits | word >> (32 - bits);
}

static void quarter(u32 *x, u32 a, u32 b, u32 c, u32 d)
{
	x[a] += x[b];
	x[d] = turn(x[d] ^ x[a], 16);
	x[c] += x[d];
	x[b] = turn(x[b] ^ x[c], 12);
	x[a] += x[b];
	x[d] = turn(x[d] ^ x[a], 8);
	x[c] += x[d];
	x[b] = turn(x[b] ^ x[c], 7);
}

static void key_stream(const u8 *key, const u8 *nonce, u32 counter, u8 to[BLOCK])
{
	u32 start[16] = { 0x61707865, 0x3320646e, 0x79622d32, 0x6b206574 }, x[16];

	memcpy(start + 4, key, SEAL_KEY);
	start[12] = counter;
	memcpy(start + 13, nonce, SEAL_NONCE);
	memcpy(x, start, sizeof(x));
	for (u32 i = 0; i < ROUNDS; i++) {
		quarter(x, 0, 4, 8, 12);
		quarter(x, 1, 5, 9, 13);
		quarter(x, 2, 6, 10, 14);
		quarter(x, 3, 7, 11, 15);
		quarter(x, 0, 5, 10, 15);
		quarter(x, 1, 6, 11, 12);
		quarter(x, 2, 7, 8, 13);
		quarter(x, 3, 4, 9, 14);
	}
	for (u32 i = 0; i < 16; i++)
		x[i] += start[i];
	memcpy(to, x, BLOCK);
}

static void encrypt(const u8 *key, const u8 *nonce, u8 *data, u64 bytes)
{
	u8 stream[BLOCK];

	for (u64 at = 0; at < bytes; at += BLOCK) {
		key_stream(key, nonce, (u32)(at / BLOCK) + 1, stream);
		for (u64 i = 0; i < least(BLOCK, bytes - at); i++)
			data[at + i] ^= stream[i];
	}
}

/* Limbs of 44, 44 and 42 bits. */
struct poly {
	u64 r[3], h[3];
	u8 pad[16];
};

static u64 word_at(const u8 *from)
{
	u64 word;

	memcpy(&word, from, sizeof(word));
	return word;
}

static void poly_start(struct poly *poly, const u8 key[32])
{
	u64 t0 = word_at(key) & 0x0ffffffc0fffffff, t1 = word_at(key + 8) & 0x0ffffffc0ffffffc;

	poly->r[0] = t0 & LOW_44;
	poly->r[1] = (t0 >> 44 | t1 << 20) & LOW_44;
	poly->r[2] = t1 >> 24;
	poly->h[0] = poly->h[1] = poly->h[2] = 0;
	memcpy(poly->pad, key + 16, 16);
}

/* Blocks of 16 bytes; the last is filled with zeros, as the construction of RFC 8439 2.8 has it. */
static void poly_add(struct poly *poly, const u8 *data, u64 bytes)
{
	const u64 *r = poly->r;
	u64 s1 = r[1] * 20, s2 = r[2] * 20;

	for (u64 at = 0; at < bytes; at += 16) {
		u8 block[16] = { 0 };
		u64 t0, t1, carry;
		u128 d0, d1, d2;

		memcpy(block, data + at, least(16, bytes - at));
		t0 = word_at(block);
		t1 = word_at(block + 8);
		poly->h[0] += t0 & LOW_44;
		poly->h[1] += (t0 >> 44 | t1 << 20) & LOW_44;
		poly->h[2] += (t1 >> 24) | (u64)1 << 40;
		d0 = (u128)poly->h[0] * r[0] + (u128)poly->h[1] * s2 + (u128)poly->h[2] * s1;
		d1 = (u128)poly->h[0] * r[1] + (u128)poly->h[1] * r[0] + (u128)poly->h[2] * s2;
		d2 = (u128)poly->h[0] * r[2] + (u128)poly->h[1] * r[1] + (u128)poly->h[2] * r[0];
		carry = (u64)(d0 >> 44);
		poly->h[0] = (u64)d0 & LOW_44;
		d1 += carry;
		carry = (u64)(d1 >> 44);
		poly->h[1] = (u64)d1 & LOW_44;
		d2 += carry;
		carry = (u64)(d2 >> 42);
		poly->h[2] = (u64)d2 & LOW_42;
		poly->h[0] += carry * 5;
		carry = poly->h[0] >> 44;
		poly->h[0] &= LOW_44;
		poly->h[1] += carry;
	}
}

static void poly_end(const struct poly *poly, u8 tag[16])
{
	u64 h0 = poly->h[0], h1 = poly->h[1], h2 = poly->h[2], g0, g1, g2, mask;
	u128 sum;

	for (u32 i = 0; i < 2; i++) {
		h2 += h1 >> 44;
		h1 &= LOW_44;
		h0 += (h2 >> 42) * 5;
		h2 &= LOW_42;
		h1 += h0 >> 44;
		h0 &= LOW_44;
	}
	h2 += h1 >> 44;
	h1 &= LOW_44;
	/* h - (2^130 - 5), if that is not negative */
	g0 = h0 + 5;
	g1 = h1 + (g0 >> 44);
	g0 &= LOW_44;
	g2 = h2 + (g1 >> 44) - ((u64)1 << 42);
	g1 &= LOW_44;
	mask = (g2 >> 63) - 1;
	h0 = (h0 & ~mask) | (g0 & mask);
	h1 = (h1 & ~mask) | (g1 & mask);
	h2 = (h2 & ~mask) | (g2 & mask);
	sum = (u128)(h0 | h1 << 44) + word_at(poly->pad);
	h0 = (u64)sum;
	h1 = (h1 >> 20 | h2 << 24) + word_at(poly->pad + 8) + (u64)(sum >> 64);
	memcpy(tag, &h0, 8);
	memcpy(tag + 8, &h1, 8);
}

static void make_tag(const u8 *key, const u8 *nonce, const u8 *extra, u64 extra_bytes, const u8 *data, u64 bytes,
		     u8 tag[SEAL_TAG])
{
	const u64 lengths[2] = { extra_bytes, bytes };
	u8 once[BLOCK];
	struct poly poly;

	key_stream(key, nonce, 0, once);
	poly_start(&poly, once);
	poly_add(&poly, extra, extra_bytes);
	poly_add(&poly, data, bytes);
	poly_add(&poly, (const u8 *)lengths, sizeof(lengths));
	poly_end(&poly, tag);
}

void seal(const u8 key[SEAL_KEY], const u8 nonce[SEAL_NONCE], const u8 *extra, u64 extra_bytes, u8 *data, u64 bytes,
	  u8 tag[SEAL_TAG])
{
	encrypt(key, nonce, data, bytes);
	make_tag(key, nonce, extra, extra_bytes, data, bytes, tag);
}

bool unseal(const u8 key[SEAL_KEY], const u8 nonce[SEAL_NONCE], const u8 *extra, u64 extra_bytes, u8 *data, u64 bytes,
	    const u8 tag[SEAL_TAG])
{
	u8 right[SEAL_TAG], differs = 0;

	make_tag(key, nonce, extra, extra_bytes, data, bytes, right);
	for (u32 i = 0; i < SEAL_TAG; i++)
		differs |= right[i] ^ tag[i];
	if (differs)
		return false;
	encrypt(key, nonce, data, bytes);
	return true;
}
