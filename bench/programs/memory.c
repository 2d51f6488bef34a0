// SPDX-License-Identifier: GPL-2.0-or-later
// Dependent loads and stores all over 64 MiB: every one misses the cache, most miss the TLB.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define WORDS (UINT64_C(64) << 20 >> 3)
#define ACCESSES 1000000

int main(void)
{
	uint64_t *words = malloc(WORDS * sizeof(*words));
	uint64_t random = 88172645463325252ull, sum = 0;

	if (!words)
		return 1;
	for (uint64_t i = 0; i < WORDS; i++)
		words[i] = i;
	for (int i = 0; i < ACCESSES; i++) {
		random ^= random << 13;
		random ^= random >> 7;
		random ^= random << 17;
		uint64_t *word = &words[(random + sum) % WORDS];
		sum += *word;
		*word = sum;
	}
	printf("%llu\n", (unsigned long long)sum);
	return 0;
}
