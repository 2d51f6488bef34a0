// SPDX-License-Identifier: GPL-2.0-or-later
// Writes a word to each page of some memory: in turn, or here and there. Arguments: MiB, rounds, 1 for here and there.
#include <stdint.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
	size_t pages = strtoul(argv[1], NULL, 10) << 8, rounds = strtoul(argv[2], NULL, 10);
	int anywhere = argc > 3 && argv[3][0] == '1';
	volatile uint64_t (*memory)[512] = malloc(pages * sizeof(*memory));
	uint64_t random = 88172645463325252ull;

	if (!memory)
		return 1;
	for (size_t at = 0; at < pages; at++)
		memory[at][0] = at;
	for (size_t touched = 0; touched < rounds * pages; touched++) {
		random ^= random << 13;
		random ^= random >> 7;
		random ^= random << 17;
		memory[(anywhere ? random : touched) % pages][0]++;
	}
	return 0;
}
