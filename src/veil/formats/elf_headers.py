# SPDX-License-Identifier: GPL-2.0-or-later
"""Headers of a 64-bit little-endian ELF file for x86-64 (System V ABI, gABI 4.1, "Object Files")."""

from __future__ import annotations

import struct

__all__ = ["ELF_HEADER", "ELF_MAGIC", "EM_X86_64", "ET_DYN", "ET_EXEC", "ET_REL", "SECTION_HEADER"]

ELF_MAGIC = b"\x7fELF"
#: e_ident, e_type, e_machine, e_version, e_entry, e_phoff, e_shoff, e_flags, e_ehsize, e_phentsize, e_phnum,
#: e_shentsize, e_shnum, e_shstrndx
ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
#: sh_name, sh_type, sh_flags, sh_addr, sh_offset, sh_size, sh_link, sh_info, sh_addralign, sh_entsize
SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
ET_REL, ET_EXEC, ET_DYN = 1, 2, 3
EM_X86_64 = 62
