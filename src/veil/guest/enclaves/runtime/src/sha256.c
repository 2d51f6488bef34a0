/* SPDX-License-Identifier: GPL-2.0-or-later */
/* FIPS 180-4. */
#include "files.h"

#define BLOCK 64

static const u32 constants[64] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
	0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
	0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
	0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
	0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
	0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
	0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static inline u32 turn(u32 word, u32 bits)
{
	return word >> bits | word << (32 - bits);
}

static inline u32 word_at(const u8 *data)
{
	u32 word;

	__builtin_memcpy(&word, data, sizeof(word));
	return __builtin_bswap32(word);
}

/* The schedule's word t, in the place of word t - 16. */
#define NEXT(t)                                                                                                        \
	(w[(t) % 16] += (turn(w[((t) + 1) % 16], 7) ^ turn(w[((t) + 1) % 16], 18) ^ w[((t) + 1) % 16] >> 3) +          \
			w[((t) + 9) % 16] +                                                                            \
			(turn(w[((t) + 14) % 16], 17) ^ turn(w[((t) + 14) % 16], 19) ^ w[((t) + 14) % 16] >> 10))

/* Names turn instead of values: after eight of these each stands for itself again. */
#define ROUND(a, b, c, d, e, f, g, h, constant, word)                                                                  \
	do {                                                                                                           \
		h += (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + (g ^ (e & (f ^ g))) + (constant) + (word);             \
		d += h;                                                                                                \
		h += (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) | (c & (a | b)));                             \
	} while (0)

#define EIGHT(t, word)                                                                                                 \
	do {                                                                                                           \
		ROUND(a, b, c, d, e, f, g, h, constants[t], word(t));                                                  \
		ROUND(h, a, b, c, d, e, f, g, constants[(t) + 1], word((t) + 1));                                      \
		ROUND(g, h, a, b, c, d, e, f, constants[(t) + 2], word((t) + 2));                                      \
		ROUND(f, g, h, a, b, c, d, e, constants[(t) + 3], word((t) + 3));                                      \
		ROUND(e, f, g, h, a, b, c, d, constants[(t) + 4], word((t) + 4));                                      \
		ROUND(d, e, f, g, h, a, b, c, constants[(t) + 5], word((t) + 5));                                      \
		ROUND(c, d, e, f, g, h, a, b, constants[(t) + 6], word((t) + 6));                                      \
		ROUND(b, c, d, e, f, g, h, a, constants[(t) + 7], word((t) + 7));                                      \
	} while (0)

#define FIRST(t) (w[t] = word_at(data + 4 * (t)))

/* BMI2's rotations leave the flags alone. Each processor with SEV-SNP has it. */
__attribute__((target("bmi2"))) static void add_block(u32 state[8], const u8 *data)
{
	u32 w[16], a = state[0], b = state[1], c = state[2], d = state[3], e = state[4], f = state[5], g = state[6],
		   h = state[7];

	EIGHT(0, FIRST);
	EIGHT(8, FIRST);
	for (u32 t = 16; t < 64; t += 16) {
		EIGHT(t, NEXT);
		EIGHT(t + 8, NEXT);
	}
	state[0] += a;
	state[1] += b;
	state[2] += c;
	state[3] += d;
	state[4] += e;
	state[5] += f;
	state[6] += g;
	state[7] += h;
}

void sha256(const u8 *data, u64 bytes, u8 digest[32])
{
	u32 state[8] = {
		0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19
	};
	u8 last[2 * BLOCK] = { 0 };
	u64 whole = bytes / BLOCK * BLOCK, rest = bytes - whole, size = rest < BLOCK - 8 ? BLOCK : 2 * BLOCK;
	u64 bits = __builtin_bswap64(bytes * 8);

	for (u64 at = 0; at < whole; at += BLOCK)
		add_block(state, data + at);
	memcpy(last, data + whole, rest);
	last[rest] = 0x80;
	memcpy(last + size - 8, &bits, 8);
	for (u64 at = 0; at < size; at += BLOCK)
		add_block(state, last + at);
	for (u32 i = 0; i < 8; i++) {
		u32 word = __builtin_bswap32(state[i]);

		memcpy(digest + 4 * i, &word, 4);
	}
}
