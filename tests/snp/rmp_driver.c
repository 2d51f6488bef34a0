// SPDX-License-Identifier: GPL-2.0-or-later
// Random instructions with hostile operands on a table of exact size, for a build with sanitizers: a wild access or
// undefined arithmetic ends the program.  The table's own invariants are checked after every instruction.
#include "rmp.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REQUIRE(condition)                                                                                             \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "line %d: %s\n", __LINE__, #condition);                                                    \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

static uint64_t seed = 0x9E3779B97F4A7C15u;

static uint64_t next(void)
{
    // xorshift64: the same sequence everywhere.
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

static uint64_t address(uint64_t pages)
{
    static const uint64_t wild[] = {
        0, ~UINT64_C(0), UINT64_C(1) << 63, UINT64_C(1) << 51, ~UINT64_C(0xFFF), UINT64_C(0xFFFFFFFFFFE00000)};
    uint64_t choice = next() % 16;

    if (choice == 0)
        return wild[next() % (sizeof(wild) / sizeof(wild[0]))];
    if (choice == 1)
        return (pages + next() % 600) << 12;
    if (choice < 6)
        return (next() % pages & ~UINT64_C(511)) << 12;
    return next() % pages << 12 | (next() % 8 ? 0 : next() & 0xFFF);
}

static void check_table(const veil_rmp *rmp)
{
    static const veil_rmp_entry zero;
    uint64_t page;

    for (page = 0; page < rmp->pages; page++) {
        const veil_rmp_entry *entry = &rmp->entries[page];

        if (veil_rmp_index(rmp, page) != page) {
            REQUIRE(!memcmp(entry, &zero, sizeof(zero)));
        } else if (!(entry->flags & VEIL_RMP_ASSIGNED)) {
            REQUIRE(!memcmp(entry, &zero, sizeof(zero)));
        } else {
            REQUIRE(entry->perms[0] == VEIL_RMP_ALL);
            REQUIRE(!((entry->perms[1] | entry->perms[2] | entry->perms[3]) & ~VEIL_RMP_ALL));
            REQUIRE(!(entry->flags & VEIL_RMP_SIZE_2M) || page % 512 == 0);
        }
    }
}

static void one_step(veil_rmp *rmp)
{
    uint64_t gpa = address(rmp->pages), where = 0, done;
    unsigned vmpl = next() % 4 ? 0 : next() % 4, cpl = next() % 8 ? 0 : 3;
    unsigned size = next() % 3 == 0;
    int cbit = next() % 8 != 0;

    switch (next() % 9) {
    case 0:
        (void)veil_rmpupdate(rmp, gpa, (unsigned)next() & (next() % 4 ? 0x09 : 0xFF));
        break;
    case 1:
        (void)veil_psmash(rmp, gpa);
        break;
    case 2:
        (void)veil_pvalidate(rmp, vmpl, cpl, gpa, cbit, size, next() % 4 != 0);
        break;
    case 3:
        (void)veil_rmpadjust(rmp, vmpl, cpl, gpa, cbit, size, next() % 8 ? next() & 0x10F03 : next());
        break;
    case 4:
        (void)veil_rmpquery(rmp, vmpl, cpl, gpa, cbit, next() % 8 ? next() % 4 : next());
        break;
    case 5:
        (void)veil_rmp_launch_page(rmp, gpa, size, next() % 4 == 0, (uint32_t)next() & (next() % 8 ? 0x0F0F0F : ~0u));
        break;
    case 6:
        rmp->vmsa_in_use = veil_rmp_is_vmsa(rmp, gpa) ? gpa : VEIL_RMP_NO_VMSA;
        break;
    case 7:
        (void)veil_rmpupdate_range(rmp, gpa, (unsigned)next() & 0x09, next() % 700, &done);
        break;
    default:
        (void)veil_rmp_check(rmp, gpa, vmpl, (unsigned)next() & 15, cbit);
        (void)veil_rmp_check_range(rmp, gpa, next() % 9000, vmpl, (unsigned)next() & 15, cbit, &where);
    }
}

int main(int argc, char **argv)
{
    static const uint64_t sizes[] = {1, 511, 512, 513, 1024, 1100};
    long steps = argc > 1 ? atol(argv[1]) : 2000;
    size_t i;

    for (i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        veil_rmp rmp = {.pages = sizes[i], .vmsa_in_use = VEIL_RMP_NO_VMSA};
        long step;

        rmp.entries = calloc(sizes[i], sizeof(*rmp.entries));
        REQUIRE(rmp.entries);
        for (step = 0; step < steps; step++) {
            one_step(&rmp);
            check_table(&rmp);
        }
        free(rmp.entries);
    }
    puts("ok");
    return 0;
}
