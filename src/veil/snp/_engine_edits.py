# SPDX-License-Identifier: GPL-2.0-or-later
"""What is changed in the sources of the CPU engine's core before they are compiled (docs/engine.md)."""

from __future__ import annotations

from veil.snp._engine_mxcsr_edits import MXCSR_EDITS
from veil.snp._engine_opcode_edits import OPCODE_EDITS
from veil.snp._engine_transfer_edits import TRANSFER_EDITS

__all__ = ["EDITS"]

#: (file, text that occurs exactly once, replacement)
EDITS = (
    # Every store to a page with translated code comes to us.
    (
        "src/qemu/accel/tcg/cputlb.c",
        "static void notdirty_write(CPUState *cpu,",
        "void veil_notdirty_write(CPUState *cpu, vaddr mem_vaddr, unsigned size, CPUIOTLBEntry *iotlbentry,\n"
        "                         uintptr_t retaddr, CPUTLBEntry *tlbe);\n"
        "#define notdirty_write veil_notdirty_write\n"
        "static __attribute__((unused)) void unused_notdirty_write(CPUState *cpu,",
    ),
    # Which of the translated blocks that were jumped to last are found without a lookup (the shadow header tb-hash.h):
    # more of them, and for us to say when they are outdated (engine/tlb.c).
    (
        "src/qemu/include/hw/core/cpu.h",
        "#define TB_JMP_CACHE_SIZE (1 << TB_JMP_CACHE_BITS)",
        "#define TB_JMP_LOW_SIZE (1 << 13)\n#define TB_JMP_HIGH_SIZE (1 << 15)\n"
        "#define TB_JMP_CACHE_SIZE (TB_JMP_LOW_SIZE + TB_JMP_HIGH_SIZE)",
    ),
    (
        "src/qemu/include/hw/core/cpu.h",
        "    struct TranslationBlock *tb_jmp_cache[TB_JMP_CACHE_SIZE];\n",
        "    struct TranslationBlock *tb_jmp_cache[TB_JMP_CACHE_SIZE];\n    unsigned int tb_jmp_low, tb_jmp_high;\n",
    ),
    (
        "src/qemu/accel/tcg/cputlb.c",
        "    cpu_tb_jmp_cache_clear(cpu);\n",
        "    void veil_tlb_flushed(CPUState *, bool);\n    veil_tlb_flushed(cpu, asked == ALL_MMUIDX_BITS);\n",
    ),
    # An access whose entry had been displaced: counted, and a table with too many of them grows (engine/tlb.c).
    (
        "src/qemu/accel/tcg/cputlb.c",
        "/* Found entry in victim tlb, swap tlb and iotlb.  */",
        "void veil_tlb_conflict(CPUState *, int); veil_tlb_conflict(env_cpu(env), mmu_idx);",
    ),
    # A store that is not aligned, in one page: nothing of it is in a second one. Else a watchpoint anywhere in front of
    # it in the page met it.
    (
        "src/qemu/accel/tcg/cputlb.c",
        "        size2 = (addr + size) & ~TARGET_PAGE_MASK;\n",
        "        size2 = page2 == (addr & TARGET_PAGE_MASK) ? 0 : (addr + size) & ~TARGET_PAGE_MASK;\n",
    ),
    # Entries have 64 bytes, and malloc() would put them across two cache lines in some boots and not in others.
    (
        "src/qemu/accel/tcg/cputlb.c",
        '#include "translate-all.h"\n',
        '#include "translate-all.h"\n#undef g_new\n#undef g_try_new\n'
        "#define g_new(type, count) ((type *)qemu_memalign(4096, sizeof(type) * (count)))\n"
        "#define g_try_new(type, count) ((type *)qemu_try_memalign(4096, sizeof(type) * (count)))\n",
    ),
    ("src/qemu/target/i386/cpu.c", "cpu = qemu_memalign(16, ", "cpu = qemu_memalign(4096, "),
    # In 64-bit code the stack segment's size means nothing, and events leave another one behind (a null selector) than
    # SYSCALL and VMRUN do: what runs after both was translated twice.
    (
        "src/qemu/target/i386/cpu.h",
        "        (env->eflags & (IOPL_MASK | TF_MASK | RF_MASK | VM_MASK | AC_MASK));\n",
        "        (env->eflags & (IOPL_MASK | TF_MASK | RF_MASK | VM_MASK | AC_MASK));\n"
        "    if (*flags & HF_CS64_MASK) {\n        *flags |= HF_SS32_MASK;\n    }\n",
    ),
    # The sizes of a table: at first, and the least.
    ("src/qemu/include/exec/cpu-defs.h", "#define CPU_TLB_DYN_DEFAULT_BITS 8", "#define CPU_TLB_DYN_DEFAULT_BITS 11"),
    (
        "src/qemu/accel/tcg/cputlb.c",
        "new_size = MAX(ceil, 1 << CPU_TLB_DYN_MIN_BITS);",
        "size_t veil_tlb_least(struct uc_struct *, const CPUTLBDesc *);\n"
        "        new_size = MAX(ceil, veil_tlb_least(uc, desc));",
    ),
    (
        "src/qemu/accel/tcg/cputlb.c",
        "    g_free(fast->table);\n    g_free(desc->iotlb);\n\n    tlb_window_reset(desc, now, 0);\n",
        "    void veil_tlb_resized(struct uc_struct *); veil_tlb_resized(uc);\n"
        "    g_free(fast->table);\n    g_free(desc->iotlb);\n\n    tlb_window_reset(desc, now, 0);\n",
    ),
    # A block ends before an instruction that might reach into the next page: a fault on fetching that page then has
    # the RIP of the instruction that needs it, and what comes before it has been executed.
    (
        "src/qemu/target/i386/translate.c",
        "} else if ((tb_cflags(dc->base.tb) & CF_USE_ICOUNT)\n               && (",
        "} else if ((",
    ),
    # Such a block jumps to the next one as other blocks do, not by way of our loop: programs' loops lie over page ends.
    (
        "src/qemu/target/i386/translate.c",
        "        dc->base.is_jmp = DISAS_TOO_MANY;\n    } else if ((pc_next - dc->base.pc_first)",
        "        if (dc->base.is_jmp == DISAS_NEXT && dc->jmp_opt && !(dc->base.tb->flags & HF_RF_MASK)) {\n"
        "            gen_jmp_tb(dc, pc_next - dc->cs_base, 0);\n"
        "        } else if (dc->base.is_jmp == DISAS_NEXT) {\n"
        "            dc->base.is_jmp = DISAS_TOO_MANY;\n        }\n"
        "    } else if ((pc_next - dc->base.pc_first)",
    ),
    # CMPXCHG8B and CMPXCHG16B change ZF alone: their helpers take the other flags from how flags are to be computed at
    # this point, which must be written down before. Else the guest's RFLAGS had an operand's bits in it (NT, AC, DF).
    (
        "src/qemu/target/i386/translate.c",
        "case 1: /* CMPXCHG8, CMPXCHG16 */\n",
        "case 1: /* CMPXCHG8, CMPXCHG16 */\n            gen_update_cc_op(s);\n",
    ),
    # SETcc, RCL and RCR work out all flags before they access memory. For a fault there they are in CC_SRC already, not
    # where they were at the instruction's start; and RCL and RCR change CF before the store: what is in memory is
    # stored first, so that the fault comes before.
    (
        "src/qemu/target/i386/translate.c",
        "    CCOp last_cc_op;",
        "    TCGOp *insn_start;\n    bool repeats;\n    CCOp last_cc_op;",
    ),
    (
        "src/qemu/target/i386/translate.c",
        "    tcg_gen_insn_start(tcg_ctx, dc->base.pc_next, dc->cc_op);\n",
        "    tcg_gen_insn_start(tcg_ctx, dc->base.pc_next, dc->cc_op);\n    dc->insn_start = tcg_last_op(tcg_ctx);\n",
    ),
    (
        "src/qemu/target/i386/translate.c",
        "        gen_setcc1(s, b, s->T0);\n        gen_ldst_modrm(",
        "        gen_setcc1(s, b, s->T0);\n        tcg_set_insn_start_param(s->insn_start, 1, s->cc_op);\n"
        "        gen_ldst_modrm(",
    ),
    (
        "src/qemu/target/i386/translate.c",
        "    // assert(s->cc_op == CC_OP_EFLAGS);\n",
        "    tcg_set_insn_start_param(s->insn_start, 1, s->cc_op);\n",
    ),
    (
        "src/qemu/target/i386/translate.c",
        "        gen_op_mov_v_reg(s, ot, s->T0, op1);\n    \n    if (is_right) {\n",
        "        gen_op_mov_v_reg(s, ot, s->T0, op1);\n    if (op1 == OR_TMP0) {\n"
        "        gen_op_st_v(s, ot, s->T0, s->A0);\n    }\n    if (is_right) {\n",
    ),
    # QEMU's table of the exceptions with an error code: #VC is one.
    (
        "src/qemu/target/i386/seg_helper.c",
        "    case 17:\n        return 1;\n",
        "    case 17:\n    case 29:\n        return 1;\n",
    ),
    # INVD is 0F 08, WBINVD 0F 09.
    ("src/qemu/target/i386/translate.c", "(b & 2) ? SVM_EXIT_INVD", "!(b & 1) ? SVM_EXIT_INVD"),
    # Far calls, far returns, IRET and the delivery of events use a stack with the rights of the level whose stack it
    # is. QEMU uses each with the kernel's: a program's IRET read, and its far call wrote, what only the kernel may; and
    # with SMAP the kernel's rights do not reach a program's stack.
    (
        "src/qemu/target/i386/seg_helper.c",
        "/* XXX: add a is_user flag to have proper security support */\n",
        "static inline int veil_stack_index(CPUX86State *env, int level)\n{\n"
        "    return level == 3 ? MMU_USER_IDX : !(env->hflags & HF_SMAP_MASK) || (env->eflags & AC_MASK)\n"
        "        ? MMU_KNOSMAP_IDX : MMU_KSMAP_IDX;\n}\n",
    ),
    (
        "src/qemu/target/i386/seg_helper.c",
        "cpu_stw_kernel_ra(env, (ssp) + (sp & (sp_mask)), (val), ra)",
        "cpu_stw_mmuidx_ra(env, (ssp) + (sp & (sp_mask)), (val), stack_index, ra)",
    ),
    (
        "src/qemu/target/i386/seg_helper.c",
        "cpu_stl_kernel_ra(env, SEG_ADDL(ssp, sp, sp_mask), (uint32_t)(val), ra)",
        "cpu_stl_mmuidx_ra(env, SEG_ADDL(ssp, sp, sp_mask), (uint32_t)(val), stack_index, ra)",
    ),
    (
        "src/qemu/target/i386/seg_helper.c",
        "cpu_stq_kernel_ra(env, sp, (val), ra)",
        "cpu_stq_mmuidx_ra(env, sp, (val), stack_index, ra)",
    ),
    (
        "src/qemu/target/i386/seg_helper.c",
        "cpu_lduw_kernel_ra(env, (ssp) + (sp & (sp_mask)), ra)",
        "cpu_lduw_mmuidx_ra(env, (ssp) + (sp & (sp_mask)), cpu_mmu_index(env, false), ra)",
    ),
    (
        "src/qemu/target/i386/seg_helper.c",
        "cpu_ldl_kernel_ra(env, SEG_ADDL(ssp, sp, sp_mask), ra)",
        "cpu_ldl_mmuidx_ra(env, SEG_ADDL(ssp, sp, sp_mask), cpu_mmu_index(env, false), ra)",
    ),
    (
        "src/qemu/target/i386/seg_helper.c",
        "cpu_ldq_kernel_ra(env, sp, ra)",
        "cpu_ldq_mmuidx_ra(env, sp, cpu_mmu_index(env, false), ra)",
    ),
    (
        "src/qemu/target/i386/seg_helper.c",
        "cpu_stl_kernel(env, ssp, error_code)",
        "cpu_stl_data_ra(env, ssp, error_code, 0)",
    ),
    (
        "src/qemu/target/i386/seg_helper.c",
        "cpu_stw_kernel(env, ssp, error_code)",
        "cpu_stw_data_ra(env, ssp, error_code, 0)",
    ),
    (
        "src/qemu/target/i386/seg_helper.c",
        "val = cpu_ldl_kernel_ra(env, old_ssp +",
        "val = cpu_ldl_data_ra(env, old_ssp +",
    ),
    (
        "src/qemu/target/i386/seg_helper.c",
        "val = cpu_lduw_kernel_ra(env, old_ssp +",
        "val = cpu_lduw_data_ra(env, old_ssp +",
    ),
    (
        "src/qemu/target/i386/seg_helper.c",
        "    shift = type >> 3;\n\n#if 0\n",
        "    int stack_index = veil_stack_index(env, dpl);\n    shift = type >> 3;\n\n#if 0\n",
    ),
    (
        "src/qemu/target/i386/seg_helper.c",
        "    esp &= ~0xfLL; /* align stack */\n",
        "    esp &= ~0xfLL; /* align stack */\n    int stack_index = veil_stack_index(env, dpl);\n",
    ),
    (
        "src/qemu/target/i386/seg_helper.c",
        "static void do_interrupt_real(CPUX86State *env, int intno, int is_int,\n"
        "                              int error_code, unsigned int next_eip)\n{\n",
        "static void do_interrupt_real(CPUX86State *env, int intno, int is_int,\n"
        "                              int error_code, unsigned int next_eip)\n{\n"
        "    int stack_index = cpu_mmu_index(env, false);\n",
    ),
    (
        "src/qemu/target/i386/seg_helper.c",
        "void helper_lcall_real(CPUX86State *env, int new_cs, target_ulong new_eip1,\n"
        "                       int shift, int next_eip)\n{\n",
        "void helper_lcall_real(CPUX86State *env, int new_cs, target_ulong new_eip1,\n"
        "                       int shift, int next_eip)\n{\n"
        "    int stack_index = cpu_mmu_index(env, false);\n",
    ),
    (
        "src/qemu/target/i386/seg_helper.c",
        "void helper_lcall_protected(CPUX86State *env, int new_cs, target_ulong new_eip,\n"
        "                            int shift, target_ulong next_eip)\n{\n",
        "void helper_lcall_protected(CPUX86State *env, int new_cs, target_ulong new_eip,\n"
        "                            int shift, target_ulong next_eip)\n{\n"
        "    int stack_index = cpu_mmu_index(env, false);\n",
    ),
    (
        "src/qemu/target/i386/seg_helper.c",
        "        if (!(e2 & DESC_C_MASK) && dpl < cpl) {\n            /* to inner privilege */\n",
        "        if (!(e2 & DESC_C_MASK) && dpl < cpl) {\n            /* to inner privilege */\n"
        "            stack_index = veil_stack_index(env, dpl);\n",
    ),
    # RFLAGS.AC lifts SMAP for what instructions ask for, not for what the processor looks up: descriptors, gates, TSS.
    (
        "src/qemu/target/i386/cpu.h",
        "        ((env->hflags & HF_CPL_MASK) < 3 && (env->eflags & AC_MASK))\n"
        "        ? MMU_KNOSMAP_IDX : MMU_KSMAP_IDX;",
        "        MMU_KSMAP_IDX;",
    ),
    # Without AVX a VEX prefix is for BMI's instructions alone. QEMU executes others as if they had none: wrong results
    # in silence, where a processor raises #UD.
    (
        "src/qemu/target/i386/translate.c",
        "            prefixes |= pp_prefix[vex3 & 3] | PREFIX_VEX;\n",
        "            prefixes |= pp_prefix[vex3 & 3] | PREFIX_VEX;\n"
        "            if (b != 0x138 && b != 0x13a) {\n                goto illegal_op;\n            }\n"
        "            int opcode = x86_ldub_code(env, s);\n"
        "            s->pc--;\n"
        "            if (b == 0x13a ? opcode != 0xf0 : opcode < 0xf2 || opcode > 0xf7 || opcode == 0xf4) {\n"
        "                goto illegal_op;\n            }\n",
    ),
    # From F0 on 0F 38 and 0F 3A have instructions on general registers (BMI, MOVBE, CRC32, ADX): CR0.TS, CR0.EM and
    # CR4.OSFXSR are not about them, and what is in x87's registers stays, where QEMU prepares for MMX.
    (
        "src/qemu/target/i386/translate.c",
        "    /* simple MMX/SSE operation */\n    if (s->flags & HF_TS_MASK) {\n",
        "    bool general = false;\n"
        "    if (b == 0x38 || b == 0x3a) {\n"
        "        general = x86_ldub_code(env, s) >= 0xf0;\n        s->pc--;\n        is_xmm |= general;\n    }\n"
        "    if ((s->flags & HF_TS_MASK) && !general) {\n",
    ),
    (
        "src/qemu/target/i386/translate.c",
        "    if (s->flags & HF_EM_MASK) {\n    illegal_op:\n",
        "    if ((s->flags & HF_EM_MASK) && !general) {\n    illegal_op:\n",
    ),
    (
        "src/qemu/target/i386/translate.c",
        "    if (is_xmm\n        && !(s->flags & HF_OSFXSR_MASK)\n",
        "    if (is_xmm && !general\n        && !(s->flags & HF_OSFXSR_MASK)\n",
    ),
    # REP MOVS begins with as many elements as lie in one page (engine/string_moves.c); what is not plain there, and the
    # rest, goes on element by element.
    (
        "src/qemu/target/i386/helper.h",
        "DEF_HELPER_FLAGS_3(xsave, TCG_CALL_NO_WG, void, env, tl, i64)\n",
        "DEF_HELPER_FLAGS_3(xsave, TCG_CALL_NO_WG, void, env, tl, i64)\nDEF_HELPER_2(veil_rep_movs, void, env, i32)\n",
    ),
    (
        "src/qemu/target/i386/translate.c",
        "            gen_repz_movs(s, ot, pc_start - s->cs_base, s->pc - s->cs_base);\n",
        "            if (CODE64(s) && s->aflag == MO_64 && s->override < 0 && s->jmp_opt\n"
        "                && !(s->base.tb->flags & HF_RF_MASK)) {\n"
        "                TCGv_i32 size = tcg_const_i32(tcg_ctx, ot);\n"
        "                gen_helper_veil_rep_movs(tcg_ctx, tcg_ctx->cpu_env, size);\n"
        "                tcg_temp_free_i32(tcg_ctx, size);\n            }\n"
        "            gen_repz_movs(s, ot, pc_start - s->cs_base, s->pc - s->cs_base);\n",
    ),
    # XSAVEC: 0F C7 /4 (engine/extended_state.c).
    (
        "src/qemu/target/i386/helper.h",
        "DEF_HELPER_FLAGS_3(xsaveopt, TCG_CALL_NO_WG, void, env, tl, i64)\n",
        "DEF_HELPER_FLAGS_3(xsaveopt, TCG_CALL_NO_WG, void, env, tl, i64)\n"
        "DEF_HELPER_3(veil_xsavec, void, env, tl, i64)\n",
    ),
    (
        "src/qemu/target/i386/translate.c",
        "        case 7: /* RDSEED */\n",
        "        case 4: /* XSAVEC */\n"
        "            if (mod == 3 || !(s->cpuid_ext_features & CPUID_EXT_XSAVE)\n"
        "                || !(s->cpuid_xsave_features & CPUID_XSAVE_XSAVEC)\n"
        "                || (s->prefix & (PREFIX_LOCK | PREFIX_DATA | PREFIX_REPZ | PREFIX_REPNZ))) {\n"
        "                goto illegal_op;\n            }\n"
        "            gen_lea_modrm(env, s, modrm);\n"
        "            gen_update_cc_op(s);\n            gen_jmp_im(s, pc_start - s->cs_base);\n"
        "            tcg_gen_concat_tl_i64(tcg_ctx, s->tmp1_i64, tcg_ctx->cpu_regs[R_EAX], tcg_ctx->cpu_regs[R_EDX]);\n"
        "            gen_helper_veil_xsavec(tcg_ctx, tcg_ctx->cpu_env, s->A0, s->tmp1_i64);\n            break;\n\n"
        "        case 7: /* RDSEED */\n",
    ),
    # XRSTOR of what XSAVEC saved. The legacy region is where it is in the standard form.
    (
        "src/qemu/target/i386/fpu_helper.c",
        "    if ((int64_t)xstate_bv < 0) {\n        /* FIXME: Compact form.  */\n"
        "        raise_exception_ra(env, EXCP0D_GPF, ra);\n    }\n",
        "",
    ),
    (
        "src/qemu/target/i386/fpu_helper.c",
        "    if (xcomp_bv || reserve0) {\n",
        "    bool compact = xcomp_bv >> 63;\n"
        "    if ((compact ? (xcomp_bv << 1 >> 1 & ~env->xcr0) | (xstate_bv & ~xcomp_bv) : xcomp_bv) || reserve0) {\n",
    ),
    (
        "src/qemu/target/i386/fpu_helper.c",
        "        do_xrstor_mxcsr(env, ptr, ra);\n        if (xstate_bv & XSTATE_SSE_MASK) {\n",
        "        if (compact && !(xstate_bv & XSTATE_SSE_MASK)) {\n            cpu_set_mxcsr(env, 0x1f80);\n"
        "        } else {\n            do_xrstor_mxcsr(env, ptr, ra);\n        }\n"
        "        if (xstate_bv & XSTATE_SSE_MASK) {\n",
    ),
    (
        "src/qemu/target/i386/fpu_helper.c",
        "do_xrstor_pkru(env, ptr + XO(pkru_state), ra)",
        "do_xrstor_pkru(env, ptr + (compact ? 576 : XO(pkru_state)), ra)",
    ),
    # A fault's image of RFLAGS has RF (APM volume 2, 3.1.6, "Resume Flag"). What IRET loads of it ends at once if DR7
    # enables nothing that it could hold back: blocks would be translated for it once more.
    (
        "src/qemu/target/i386/seg_helper.c",
        "/* protected mode interrupt */\n",
        "static uint32_t veil_flags_image(CPUX86State *env, int intno, int is_int, int is_hw)\n{\n"
        "    bool is_fault = !is_int && !is_hw && intno != EXCP01_DB && intno != EXCP03_INT3\n"
        "        && intno != EXCP04_INTO && intno != EXCP08_DBLE && intno != EXCP12_MCHK;\n\n"
        "    return cpu_compute_eflags(env) | (is_fault ? RF_MASK : 0);\n}\n\n/* protected mode interrupt */\n",
    ),
    (
        "src/qemu/target/i386/seg_helper.c",
        "        PUSHL(ssp, esp, sp_mask, cpu_compute_eflags(env));\n",
        "        PUSHL(ssp, esp, sp_mask, veil_flags_image(env, intno, is_int, is_hw));\n",
    ),
    (
        "src/qemu/target/i386/seg_helper.c",
        "    PUSHQ(esp, cpu_compute_eflags(env));\n",
        "    PUSHQ(esp, veil_flags_image(env, intno, is_int, is_hw));\n",
    ),
    (
        "src/qemu/target/i386/seg_helper.c",
        "        eflags_mask = TF_MASK | AC_MASK | ID_MASK | RF_MASK | NT_MASK;\n        if (cpl == 0) {\n",
        "        eflags_mask = TF_MASK | AC_MASK | ID_MASK | NT_MASK | (env->dr[7] & 0xff ? RF_MASK : 0);\n"
        "        if (cpl == 0) {\n",
    ),
    # SYSRET clears RF and VM, whatever is in R11.
    (
        "src/qemu/target/i386/seg_helper.c",
        "cpu_load_eflags(env, (uint32_t)(env->regs[11]), TF_MASK",
        "cpu_load_eflags(env, (uint32_t)(env->regs[11]) & ~(RF_MASK | VM_MASK), TF_MASK",
    ),
    # RF holds breakpoints of code back for one instruction, all iterations of it. QEMU let it go on where a block is
    # joined to the next one, and within a block.
    (
        "src/qemu/target/i386/translate.c",
        "    dc->jmp_opt = !(dc->tf || dc->base.singlestep_enabled ||\n"
        "                    (flags & HF_INHIBIT_IRQ_MASK));\n",
        "    dc->jmp_opt = !(dc->tf || dc->base.singlestep_enabled ||\n"
        "                    (flags & (HF_INHIBIT_IRQ_MASK | HF_RF_MASK)));\n",
    ),
    (
        "src/qemu/target/i386/translate.c",
        "    if (dc->tf || (dc->base.tb->flags & HF_INHIBIT_IRQ_MASK)) {\n",
        "    if (dc->tf || (dc->base.tb->flags & (HF_INHIBIT_IRQ_MASK | HF_RF_MASK))) {\n",
    ),
    (
        "src/qemu/target/i386/translate.c",
        "    if (s->base.tb->flags & HF_RF_MASK) {\n",
        "    if ((s->base.tb->flags & HF_RF_MASK) && !s->repeats) {\n",
    ),
    *(
        (
            "src/qemu/target/i386/translate.c",
            f"    gen_jmp(s, cur_eip);{' ' * 54}\\\n}}\n\n{behind}",
            f"    s->repeats = true; gen_jmp(s, cur_eip); \\\n}}\n\n{behind}",
        )
        for behind in ("#define GEN_REPZ2(op)", "GEN_REPZ(movs)")
    ),
    # A debugger's step over an instruction that ends with the guest's own single-step trap has the trap in it.
    (
        "src/qemu/target/i386/translate.c",
        "    if (s->base.singlestep_enabled) {\n        gen_helper_debug(tcg_ctx, tcg_ctx->cpu_env);\n    } else if",
        "    if (s->base.singlestep_enabled) {\n        if (recheck_tf) {\n"
        "            gen_helper_rechecking_single_step(tcg_ctx, tcg_ctx->cpu_env);\n        } else if (s->tf) {\n"
        "            gen_helper_single_step(tcg_ctx, tcg_ctx->cpu_env);\n        }\n"
        "        gen_helper_debug(tcg_ctx, tcg_ctx->cpu_env);\n    } else if",
    ),
    # A read that is not aligned, in one page with a watchpoint: that its bytes are asked for, and not those of the two
    # aligned words that it lies in.
    (
        "src/qemu/accel/tcg/cputlb.c",
        "recurse through full_load.  */\n        if ((addr & (size - 1)) != 0) {\n",
        "recurse through full_load.  */\n        if ((addr & (size - 1)) != 0\n"
        "            && ((tlb_addr & ~TARGET_PAGE_MASK) != TLB_WATCHPOINT\n"
        "                || (addr & ~TARGET_PAGE_MASK) + size > TARGET_PAGE_SIZE)) {\n",
    ),
    # INT1 (ICEBP): a trap #DB, whatever its gate's DPL, and DR6 stays.
    (
        "src/qemu/target/i386/translate.c",
        "#ifdef WANT_ICEBP\n    case 0xf1: /* icebp (undocumented, exits to external debugger) */\n"
        "        gen_svm_check_intercept(s, pc_start, SVM_EXIT_ICEBP);\n"
        "        gen_debug(s, pc_start - s->cs_base);\n        break;\n#endif\n",
        "    case 0xf1:\n        gen_exception(s, EXCP01_DB, s->pc - s->cs_base);\n        break;\n",
    ),
    # CLAC and STAC end a block, because the level of accesses changes; the next one is looked up without the loop.
    (
        "src/qemu/target/i386/translate.c",
        "            gen_helper_clac(tcg_ctx, tcg_ctx->cpu_env);\n"
        "            gen_jmp_im(s, s->pc - s->cs_base);\n            gen_eob(s);\n",
        "            gen_helper_clac(tcg_ctx, tcg_ctx->cpu_env);\n"
        "            gen_jmp_im(s, s->pc - s->cs_base);\n            gen_jr(s, s->T0);\n",
    ),
    (
        "src/qemu/target/i386/translate.c",
        "            gen_helper_stac(tcg_ctx, tcg_ctx->cpu_env);\n"
        "            gen_jmp_im(s, s->pc - s->cs_base);\n            gen_eob(s);\n",
        "            gen_helper_stac(tcg_ctx, tcg_ctx->cpu_env);\n"
        "            gen_jmp_im(s, s->pc - s->cs_base);\n            gen_jr(s, s->T0);\n",
    ),
    *TRANSFER_EDITS,
    *OPCODE_EDITS,
    *MXCSR_EDITS,
)
