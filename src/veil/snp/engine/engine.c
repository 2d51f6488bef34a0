/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The engine's life, and VMRUN. One Unicorn core serves every context: a VMSA is
 * loaded into it, run, and saved back, so that translated code is shared by all
 * VCPUs and no second core can hold a stale copy of it.
 */
#include "engine.h"

#include "exec/cputlb.h"
#include "exec/exec-all.h"
#include "exec/memory.h"
#include "translate-all.h"

#include <unicorn/unicorn.h>

void __wrap_tlb_protect_code_x86_64(struct uc_struct *uc, ram_addr_t ram_addr);
void __wrap_tlb_unprotect_code_x86_64(struct uc_struct *uc, ram_addr_t ram_addr);
void __wrap_tlb_reset_dirty_by_vaddr_x86_64(CPUState *cpu, target_ulong start, target_ulong length);
void veil_notdirty_write(CPUState *cpu, vaddr mem_vaddr, unsigned size, CPUIOTLBEntry *iotlbentry, uintptr_t retaddr,
                         CPUTLBEntry *tlbe);
uint64_t *veil_instruction_count(struct uc_struct *uc);

/*
 * Self-modifying code. A page from which code was translated is marked in
 * code_map; every TLB entry of it, through whatever virtual address, sends stores
 * to veil_notdirty_write(). (Unicorn's own way forgets aliases after the first
 * store; Linux patches its text through one.)
 */
void __wrap_tlb_protect_code_x86_64(struct uc_struct *uc, ram_addr_t ram_addr)
{
    struct veil_engine *e = veil_of(uc->cpu->env_ptr);

    if (!e->code_map[ram_addr >> TARGET_PAGE_BITS]) {
        e->code_map[ram_addr >> TARGET_PAGE_BITS] = 1;
        tlb_reset_dirty(e->cs, (uintptr_t)e->ram + (ram_addr & TARGET_PAGE_MASK), TARGET_PAGE_SIZE);
    }
}

void __wrap_tlb_unprotect_code_x86_64(struct uc_struct *uc, ram_addr_t ram_addr)
{
    veil_of(uc->cpu->env_ptr)->code_map[ram_addr >> TARGET_PAGE_BITS] = 0;
}

void __wrap_tlb_reset_dirty_by_vaddr_x86_64(CPUState *cpu, target_ulong start, target_ulong length)
{
    /* Done once a page, by physical address, in tlb_protect_code. */
}

void veil_notdirty_write(CPUState *cpu, vaddr mem_vaddr, unsigned size, CPUIOTLBEntry *iotlbentry, uintptr_t retaddr,
                         CPUTLBEntry *tlbe)
{
    struct veil_engine *e = veil_of(cpu->env_ptr);
    uint64_t page = tlbe->paddr >> TARGET_PAGE_BITS;

    e->counters.code_stores++;
    if (e->code_map[page]) {
        ram_addr_t address = tlbe->paddr | (mem_vaddr & ~TARGET_PAGE_MASK);
        struct page_collection *pages = page_collection_lock(e->uc, address, address + size);

        tb_invalidate_phys_page_fast(e->uc, pages, address, size, retaddr);
        page_collection_unlock(pages);
    }
    if (!e->code_map[page]) {
        tlb_set_dirty(cpu, mem_vaddr);
    }
}

static MemoryRegion *only_region(struct uc_struct *uc, hwaddr address)
{
    return veil_of(uc->cpu->env_ptr)->ram_region;
}

struct veil_engine *veil_engine_new(uint8_t *ram, uint64_t ram_size, uint64_t low_end, struct veil_rmp *rmp,
                                    uint8_t *code_map)
{
    struct veil_engine *e = calloc(1, sizeof(*e));

    if (!e) {
        return NULL;
    }
    e->ram = ram;
    e->ram_size = ram_size;
    e->low_end = low_end;
    e->rmp = rmp;
    e->code_map = code_map;
    if (uc_open(UC_ARCH_X86, UC_MODE_64, &e->uc) != UC_ERR_OK) {
        free(e);
        return NULL;
    }
    /* The nearest model to the processors that have SNP; QEMU takes away what TCG cannot do. */
    if (uc_ctl_set_cpu_model(e->uc, UC_CPU_X86_EPYC_ROME) != UC_ERR_OK ||
        uc_mem_map_ptr(e->uc, 0, ram_size, UC_PROT_ALL, ram) != UC_ERR_OK) {
        uc_close(e->uc);
        free(e);
        return NULL;
    }
    e->cs = e->uc->cpu;
    e->env = e->cs->env_ptr;
    e->env->vm_hsave = (uintptr_t)e;
    e->ram_region = e->uc->memory_mapping(e->uc, 0);
    e->uc->memory_mapping = only_region;
    /* Exits happen at block starts only: Unicorn's check after each access would repeat a read-modify-write. */
    e->uc->no_exit_request = true;
    e->uc->exits[0] = 1ULL << 60; /* not canonical: no address is an end */
    CPU_GET_CLASS(e->cs)->tlb_fill = veil_tlb_fill;
    e->rmp_generation = rmp->generation - 1;
    e->loaded_vmsa = ~0ULL;
    if (veil_ticker_start(e)) {
        uc_close(e->uc);
        free(e);
        return NULL;
    }
    return e;
}

void veil_engine_free(struct veil_engine *e)
{
    if (e) {
        veil_ticker_finish(e);
        uc_close(e->uc);
        free(e);
    }
}

/* Where the blocks of an engine that counts instructions add theirs (the shadow header). */
uint64_t *veil_instruction_count(struct uc_struct *uc)
{
    return &veil_of(uc->cpu->env_ptr)->counters.instructions;
}

void veil_engine_code_written(struct veil_engine *e, uint64_t gpa, uint64_t length)
{
    if (length && gpa < e->ram_size && length <= e->ram_size - gpa) {
        tb_invalidate_phys_range(e->uc, gpa, gpa + length);
    }
}

void veil_engine_reset(struct veil_engine *e)
{
    tb_flush(e->cs);
    tlb_flush(e->cs);
    memset(e->code_map, 0, e->ram_size >> TARGET_PAGE_BITS);
    e->loaded_vmsa = ~0ULL;
}

void veil_engine_cpuid(struct veil_engine *e, uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
    cpu_x86_cpuid(e->env, leaf, subleaf, &out[0], &out[1], &out[2], &out[3]);
}

void veil_engine_set_pause_limit(struct veil_engine *e, uint32_t limit)
{
    e->pause_limit = limit;
    e->pauses = 0;
}

const struct veil_engine_counters *veil_engine_counters(struct veil_engine *e)
{
    return &e->counters;
}

/* Consistency checks of VMRUN on the VMSA (APM vol. 2, 15.5.1 and 15.36.12). */
static bool is_runnable(struct veil_engine *e, uint64_t gpa)
{
    const struct veil_vmsa *vmsa;

    if ((gpa & ~TARGET_PAGE_MASK) || !veil_is_ram(e, gpa) || !veil_rmp_is_vmsa(e->rmp, gpa)) {
        return false;
    }
    vmsa = (const struct veil_vmsa *)(e->ram + gpa);
    return (vmsa->efer & MSR_EFER_SVME) && vmsa->vmpl < VEIL_RMP_VMPLS && (vmsa->sev_features & 1);
}

/* Event of the VMCB's EVENTINJ (APM vol. 2, 15.20). Types: 0 interrupt, 2 NMI, 3 exception, 4 software interrupt. */
static void take_injection(struct veil_engine *e, struct veil_vmcb *vmcb)
{
    uint64_t injection = vmcb->event_inj;

    vmcb->event_inj = 0;
    if (!(injection & (uint32_t)SVM_EVTINJ_VALID)) {
        return;
    }
    e->delivering = (struct veil_event){
        .pending = true,
        .vector = injection & 0xff,
        .type = (injection >> 8) & 7,
        .has_error_code = (injection & SVM_EVTINJ_VALID_ERR) != 0,
        .error_code = injection >> 32,
        .next_rip = vmcb->nrip,
    };
}

/* EXITINTINFO. (svm.h's SVM_EVTINJ_VALID is a negative int: or-ed in here, it would fill the error code with ones.) */
static uint64_t exit_interruption(const struct veil_event *event)
{
    uint32_t low = event->vector | (uint32_t)event->type << 8 | (uint32_t)SVM_EVTINJ_VALID;

    if (!event->pending) {
        return 0;
    }
    if (event->has_error_code) {
        low |= SVM_EVTINJ_VALID_ERR;
    }
    return low | (uint64_t)event->error_code << 32;
}

void veil_engine_vmrun(struct veil_engine *e, struct veil_vmcb *vmcb, uint64_t deadline_ns)
{
    uint64_t gpa = vmcb->vmsa_pa;

    vmcb->exit_int_info = 0;
    if (!is_runnable(e, gpa)) {
        vmcb->exit_code = VEIL_EXIT_INVALID;
        vmcb->exit_info_1 = vmcb->exit_info_2 = 0;
        return;
    }
    e->counters.vmruns++;
    e->vmcb = vmcb;
    e->vmsa = (struct veil_vmsa *)(e->ram + gpa);
    e->vmpl = e->vmsa->vmpl;
    e->rmp->vmsa_in_use = gpa;
    veil_context_load(e);
    take_injection(e, vmcb);
    e->deadline_ns = deadline_ns;
    veil_ticker_resume(e);
    if (deadline_ns && veil_monotonic_ns() >= deadline_ns) {
        atomic_set(&e->cs->icount_decr_ptr->u16.high, -1);
    }

    veil_run(e);

    e->running = false;
    vmcb->exit_code = e->exit_code;
    vmcb->exit_info_1 = e->exit_info_1;
    vmcb->exit_info_2 = e->exit_info_2;
    vmcb->exit_int_info = exit_interruption(&e->delivering);
    vmcb->nrip = e->delivering.pending ? e->delivering.next_rip : e->env->eip;
    if (e->delivering.pending) {
        e->counters.redelivered++;
        e->delivering.pending = false;
    }
    vmcb->interrupt_shadow = (e->env->hflags & HF_INHIBIT_IRQ_MASK ? 1 : 0) | (e->env->eflags & IF_MASK ? 2 : 0);
    veil_context_save(e);
    e->rmp->vmsa_in_use = VEIL_RMP_NO_VMSA;
}
