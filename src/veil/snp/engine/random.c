/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * RDRAND and RDSEED. Unicorn's are a Mersenne Twister that all levels of the guest share: whoever has seen 624 words
 * of it, any program of the guest, knows what enclaves make their keys and nonces of. So they are this computer's.
 */
#include "core.h"

#include <sys/random.h>

#include "exec/helper-proto.h"

target_ulong __wrap_helper_rdrand_x86_64(CPUX86State *env);

target_ulong __wrap_helper_rdrand_x86_64(CPUX86State *env)
{
    target_ulong word;
    bool given = getrandom(&word, sizeof(word), GRND_NONBLOCK) == sizeof(word);

    env->cc_src = given ? CC_C : 0;
    return given ? word : 0;
}
