/* SPDX-License-Identifier: GPL-2.0-or-later */
/* PVALIDATE, RMPADJUST, RMPQUERY, INVLPGB, TLBSYNC, VMGEXIT, VMMCALL. */
#ifndef VEIL_SNP_OPCODES_H
#define VEIL_SNP_OPCODES_H

#include "core.h"

/* After an invalid opcode: true if it was one of these, and it completed. */
bool veil_snp_instruction(struct veil_engine *e);

#endif
