/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The VMSA of an SEV-ES guest (APM vol. 2, 24593, table B-4) and the control area
 * of a VMCB (table B-1), as in memory.
 */
#ifndef VEIL_VMSA_H
#define VEIL_VMSA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct veil_vmsa_segment {
    uint16_t selector;
    uint16_t attrib;
    uint32_t limit;
    uint64_t base;
} __attribute__((packed));

struct veil_vmsa {
    struct veil_vmsa_segment es, cs, ss, ds, fs, gs, gdtr, ldtr, idtr, tr;
    uint64_t vmpl0_ssp, vmpl1_ssp, vmpl2_ssp, vmpl3_ssp;
    uint64_t u_cet;
    uint8_t reserved_0c8[2];
    uint8_t vmpl;
    uint8_t cpl;
    uint8_t reserved_0cc[4];
    uint64_t efer;
    uint8_t reserved_0d8[104];
    uint64_t xss, cr4, cr3, cr0, dr7, dr6, rflags, rip;
    uint64_t dr0, dr1, dr2, dr3, dr0_addr_mask, dr1_addr_mask, dr2_addr_mask, dr3_addr_mask;
    uint8_t reserved_1c0[24];
    uint64_t rsp, s_cet, ssp, isst_addr, rax;
    uint64_t star, lstar, cstar, sfmask, kernel_gs_base, sysenter_cs, sysenter_esp, sysenter_eip, cr2;
    uint8_t reserved_248[32];
    uint64_t g_pat, dbgctl, br_from, br_to, last_excp_from, last_excp_to;
    uint8_t reserved_298[72];
    uint64_t spec_ctrl;
    uint32_t pkru, tsc_aux;
    uint64_t tsc_scale, tsc_offset;
    uint8_t reserved_300[8];
    uint64_t rcx, rdx, rbx, reserved_320, rbp, rsi, rdi;
    uint64_t r8, r9, r10, r11, r12, r13, r14, r15;
    uint8_t reserved_380[16];
    uint64_t exit_info_1, exit_info_2, exit_int_info, nrip, sev_features, vintr_ctrl, guest_exit_code, virtual_tom;
    uint64_t tlb_id, pcpu_id, event_inj, xcr0;
    uint8_t reserved_3f0[16];
    uint64_t x87_dp;
    uint32_t mxcsr;
    uint16_t x87_ftw, x87_fsw, x87_fcw, x87_fop, x87_ds, x87_cs;
    uint64_t x87_rip;
    uint8_t fpreg_x87[80];
    uint8_t fpreg_xmm[256];
    uint8_t fpreg_ymm[256];
} __attribute__((packed));

_Static_assert(offsetof(struct veil_vmsa, vmpl) == 0x0ca, "VMSA");
_Static_assert(offsetof(struct veil_vmsa, efer) == 0x0d0, "VMSA");
_Static_assert(offsetof(struct veil_vmsa, xss) == 0x140, "VMSA");
_Static_assert(offsetof(struct veil_vmsa, rip) == 0x178, "VMSA");
_Static_assert(offsetof(struct veil_vmsa, dr0) == 0x180, "VMSA");
_Static_assert(offsetof(struct veil_vmsa, rsp) == 0x1d8, "VMSA");
_Static_assert(offsetof(struct veil_vmsa, rax) == 0x1f8, "VMSA");
_Static_assert(offsetof(struct veil_vmsa, cr2) == 0x240, "VMSA");
_Static_assert(offsetof(struct veil_vmsa, g_pat) == 0x268, "VMSA");
_Static_assert(offsetof(struct veil_vmsa, spec_ctrl) == 0x2e0, "VMSA");
_Static_assert(offsetof(struct veil_vmsa, pkru) == 0x2e8, "VMSA");
_Static_assert(offsetof(struct veil_vmsa, rcx) == 0x308, "VMSA");
_Static_assert(offsetof(struct veil_vmsa, r15) == 0x378, "VMSA");
_Static_assert(offsetof(struct veil_vmsa, sev_features) == 0x3b0, "VMSA");
_Static_assert(offsetof(struct veil_vmsa, guest_exit_code) == 0x3c0, "VMSA");
_Static_assert(offsetof(struct veil_vmsa, xcr0) == 0x3e8, "VMSA");
_Static_assert(offsetof(struct veil_vmsa, mxcsr) == 0x408, "VMSA");
_Static_assert(offsetof(struct veil_vmsa, fpreg_x87) == 0x420, "VMSA");
_Static_assert(sizeof(struct veil_vmsa) == 0x670, "VMSA");

struct veil_vmcb {
    uint32_t intercepts[6];
    uint8_t reserved_018[36];
    uint16_t pause_filter_threshold, pause_filter_count;
    uint64_t iopm_base_pa, msrpm_base_pa, tsc_offset;
    uint32_t asid;
    uint8_t tlb_control;
    uint8_t reserved_05d[3];
    uint64_t v_intr;
    uint64_t interrupt_shadow;
    uint64_t exit_code, exit_info_1, exit_info_2, exit_int_info;
    uint64_t np_enable, avic_vapic_bar, ghcb_gpa, event_inj, nested_cr3, virt_ext;
    uint32_t clean, reserved_0c4;
    uint64_t nrip;
    uint8_t insn_len, insn_bytes[15];
    uint64_t avic_backing_page, reserved_0e8, avic_logical_id, avic_physical_id, reserved_100, vmsa_pa;
    uint8_t reserved_110[0x400 - 0x110];
} __attribute__((packed));

_Static_assert(offsetof(struct veil_vmcb, iopm_base_pa) == 0x040, "VMCB");
_Static_assert(offsetof(struct veil_vmcb, v_intr) == 0x060, "VMCB");
_Static_assert(offsetof(struct veil_vmcb, exit_code) == 0x070, "VMCB");
_Static_assert(offsetof(struct veil_vmcb, ghcb_gpa) == 0x0a0, "VMCB");
_Static_assert(offsetof(struct veil_vmcb, nrip) == 0x0c8, "VMCB");
_Static_assert(offsetof(struct veil_vmcb, vmsa_pa) == 0x108, "VMCB");
_Static_assert(sizeof(struct veil_vmcb) == 0x400, "VMCB");

/* Bits of sev_features (table B-4). */
#define VEIL_SEV_SNP_ACTIVE (1ULL << 0)
#define VEIL_SEV_RESTRICTED_INJECTION (1ULL << 3)
#define VEIL_SEV_ALTERNATE_INJECTION (1ULL << 4)
#define VEIL_SEV_DEBUG_SWAP (1ULL << 5)
/* These, and those that keep off what is not here: IBS of the host, other users of the branch predictor, shadow stacks,
 * SMT. A context with any other feature expects what it would not get. */
#define VEIL_SEV_SUPPORTED 0x2081f9ULL

/* The VMCB's v_intr, and the VMSA's vintr_ctrl: V_TPR bits 3:0, V_IRQ bit 8, V_INTR_PRIO bits 19:16, V_IGN_TPR bit 20,
 * V_NMI bit 11, V_NMI_MASK bit 12, V_NMI_ENABLE bit 26, V_INTR_VECTOR bits 39:32. The VMSA's alone: INT_SHADOW, BUSY.
 */
#define VEIL_V_IRQ (1ULL << 8)
#define VEIL_V_INT_SHADOW (1ULL << 10)
#define VEIL_V_NMI (1ULL << 11)
#define VEIL_V_NMI_MASK (1ULL << 12)
#define VEIL_V_NMI_ENABLE (1ULL << 26)
#define VEIL_V_BUSY (1ULL << 63)

static inline bool veil_offers_irq(uint64_t v_intr)
{
    return v_intr & VEIL_V_IRQ;
}

static inline uint8_t veil_offered_vector(uint64_t v_intr)
{
    return v_intr >> 32 & 0xff;
}

/* Is V_IRQ above the task priority (APM vol. 2, 15.21.4)? */
static inline bool veil_irq_passes(uint64_t v_intr, uint8_t tpr)
{
    return (v_intr >> 20 & 1) || (v_intr >> 16 & 15) > tpr;
}

/* An NMI waits (APM vol. 2, 15.21.10); without V_NMI_ENABLE the bit means nothing. */
static inline bool veil_offers_nmi(uint64_t v_intr)
{
    return (v_intr & (VEIL_V_NMI | VEIL_V_NMI_ENABLE)) == (VEIL_V_NMI | VEIL_V_NMI_ENABLE);
}

static inline bool veil_offers(uint64_t v_intr)
{
    return veil_offers_irq(v_intr) || veil_offers_nmi(v_intr);
}

/* Exit codes that QEMU's svm.h does not have (APM vol. 2, appendix C). */
#define VEIL_EXIT_INTR 0x060u
#define VEIL_EXIT_SHUTDOWN 0x07fu
#define VEIL_EXIT_NPF 0x400u
#define VEIL_EXIT_VMGEXIT 0x403u
#define VEIL_EXIT_NOT_VALIDATED 0x404u
#define VEIL_EXIT_INVALID (~0ULL)
#define VEIL_EXIT_BUSY (~1ULL)

#endif
