/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The engine's life. One Unicorn core serves every context: a VMSA is loaded into
 * it, run, and saved back (vmrun.c), so that translated code is shared by all VCPUs
 * and no second core can hold a stale copy of it.
 */
#include "clock.h"
#include "core.h"
#include "debug_registers.h"
#include "mmu.h"
#include "spaces.h"

#include "exec/exec-all.h"
#include "exec/memory.h"
#include "translate-all.h"

#include <unicorn/unicorn.h>

uint64_t *veil_instruction_count(struct uc_struct *uc);

static MemoryRegion *only_region(struct uc_struct *uc, hwaddr address)
{
    return veil_of(uc->cpu->env_ptr)->ram_region;
}

struct veil_engine *veil_engine_new(uint8_t *ram, uint64_t ram_size, const uint64_t edges[static 2 * VEIL_MAX_HOLES],
                                    struct veil_rmp *rmp, uint8_t *code_map)
{
    struct veil_engine *e = calloc(1, sizeof(*e));

    if (!e) {
        return NULL;
    }
    e->ram = ram;
    e->ram_size = ram_size;
    e->low_end = edges[0];
    e->high_start = edges[1];
    e->high_end = edges[2];
    e->far_start = edges[3];
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
    veil_spaces_init(e);
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
        veil_spaces_free(e);
        veil_debug_free(e);
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
    uint64_t page;

    if (length && gpa < e->ram_size && length <= e->ram_size - gpa) {
        for (page = gpa >> TARGET_PAGE_BITS; page <= (gpa + length - 1) >> TARGET_PAGE_BITS; page++) {
            e->table_writes += e->code_map[page] & VEIL_TABLE ? 1 : 0;
        }
        tb_invalidate_phys_range(e->uc, gpa, gpa + length);
    }
}

void veil_engine_reset(struct veil_engine *e)
{
    tb_flush(e->cs);
    tlb_flush(e->cs);
    /* Not in the holes, for which the operating system would have to find memory. */
    memset(e->code_map, 0, e->low_end >> TARGET_PAGE_BITS);
    memset(e->code_map + (e->high_start >> TARGET_PAGE_BITS), 0, (e->high_end - e->high_start) >> TARGET_PAGE_BITS);
    memset(e->code_map + (e->far_start >> TARGET_PAGE_BITS), 0, (e->ram_size - e->far_start) >> TARGET_PAGE_BITS);
    veil_spaces_forget(e);
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

void veil_engine_set_single_step(struct veil_engine *e, uint32_t on)
{
    e->cs->singlestep_enabled = on != 0; /* VMRUN chooses the translations */
}

const struct veil_engine_counters *veil_engine_counters(struct veil_engine *e)
{
    return &e->counters;
}
