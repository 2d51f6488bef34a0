/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Stands in for Unicorn's header of this name when its core is built. Unicorn
 * calls a helper at the start of every block to ask whether to stop; here each
 * block tests one word, as QEMU's own blocks do.
 */
#ifndef GEN_ICOUNT_H
#define GEN_ICOUNT_H

#include "qemu/timer.h"

/* Engines of several threads may translate at the same time. */
static __thread TCGLabel *veil_stop_label;

#ifdef VEIL_ENGINE_COUNTS
static __thread TCGOp *veil_count_op;
uint64_t *veil_instruction_count(struct uc_struct *uc);
#endif

static inline void gen_io_start(TCGContext *tcg_ctx)
{
}

static inline void gen_io_end(TCGContext *tcg_ctx)
{
}

static inline void gen_tb_start(TCGContext *tcg_ctx, TranslationBlock *tb)
{
    TCGv_i32 stop = tcg_temp_new_i32(tcg_ctx);

    veil_stop_label = gen_new_label(tcg_ctx);
    tcg_gen_ld_i32(tcg_ctx, stop, tcg_ctx->cpu_env,
                   (tcg_target_long)offsetof(ArchCPU, neg.icount_decr.u32) - (tcg_target_long)offsetof(ArchCPU, env));
    tcg_gen_brcondi_i32(tcg_ctx, TCG_COND_LT, stop, 0, veil_stop_label);
    tcg_temp_free_i32(tcg_ctx, stop);
#ifdef VEIL_ENGINE_COUNTS
    TCGv_ptr counter = tcg_const_ptr(tcg_ctx, veil_instruction_count(tcg_ctx->uc));
    TCGv_i64 count = tcg_temp_new_i64(tcg_ctx), length = tcg_temp_new_i64(tcg_ctx);

    tcg_gen_ld_i64(tcg_ctx, count, counter, 0);
    tcg_gen_movi_i64(tcg_ctx, length, 0x7eadbeef); /* known at the block's end only */
    veil_count_op = tcg_last_op(tcg_ctx);
    tcg_gen_add_i64(tcg_ctx, count, count, length);
    tcg_gen_st_i64(tcg_ctx, count, counter, 0);
    tcg_temp_free_i64(tcg_ctx, length);
    tcg_temp_free_i64(tcg_ctx, count);
    tcg_temp_free_ptr(tcg_ctx, counter);
#endif
}

static inline void gen_tb_end(TCGContext *tcg_ctx, TranslationBlock *tb, int num_insns)
{
#ifdef VEIL_ENGINE_COUNTS
    tcg_set_insn_param(veil_count_op, 1, num_insns);
#endif
    gen_set_label(tcg_ctx, veil_stop_label);
    tcg_gen_exit_tb(tcg_ctx, tb, TB_EXIT_REQUESTED);
}

#endif
