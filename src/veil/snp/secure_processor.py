# SPDX-License-Identifier: GPL-2.0-or-later
"""The secure processor: launch (SNP firmware ABI, 56860, sections 8.12 to 8.15 and "Launch Digest"), guest requests."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from veil.formats.attestation_report import FIRST_UNKNOWN_POLICY_BIT, GuestPolicy
from veil.formats.guest_message import KEY_BYTES
from veil.formats.launch_digest import VMSA_GPA, LaunchDigest, PageType, launch_digest
from veil.formats.page_sizes import PAGE_SIZE, PAGE_SIZE_2M
from veil.snp.cpuid_page_checks import check_cpuid_page
from veil.snp.errors import LaunchError, SnpError
from veil.snp.guest_requests import MODEL_TCB, FirmwareStatus, GuestRequests, LaunchedGuest
from veil.snp.id_block_checks import LaunchIdentity, check_id_block
from veil.snp.layouts import SECRETS_VERSION, SecretsPage
from veil.snp.memory import Memory
from veil.snp.rmp import PageSize, Rmp, RmpResult

if TYPE_CHECKING:
    from veil.snp.endorsement import Endorsement

__all__ = ["VMSA_GPA", "LaunchDigest", "PageType", "SecureProcessor", "check_policy", "launch_digest"]

#: versions of reports that the model can make
_REPORT_VERSIONS = (2, 3, 5)
_VMPCKS = 4


class SecureProcessor:
    """Takes in the image, measures it, and makes its pages the guest's own; then answers the guest's messages."""

    def __init__(
        self,
        memory: Memory,
        rmp: Rmp,
        *,
        endorsement: Callable[[], Endorsement] | None = None,
        cpuid_signature: int = 0,
        report_version: int = 3,
    ) -> None:
        """`endorsement` gives the chip's keys when they are first needed; without it they are made then."""
        if report_version not in _REPORT_VERSIONS:
            raise SnpError(f"the machine makes reports of versions 2, 3 and 5, not {report_version}")
        self._memory = memory
        self._rmp = rmp
        self._make_endorsement = endorsement or _new_chip
        self._endorsement: Endorsement | None = None
        self._requests = GuestRequests(
            lambda: self.endorsement, cpuid_signature=cpuid_signature, report_version=report_version
        )
        self._identity = LaunchIdentity()
        self._state = "idle"
        self._digest = LaunchDigest()
        self.policy = 0
        self.host_data = bytes(32)
        #: VM platform communication keys, VMPL 0 to 3; the guest gets them in its secrets page
        self.vmpcks: list[bytes] = []
        self._secrets_pages: list[int] = []

    @property
    def measurement(self) -> bytes:
        """The launch digest so far, 48 bytes."""
        return self._digest.value

    @property
    def endorsement(self) -> Endorsement:
        """The chip's identity and keys; a host needs its `certificate_table`."""
        if self._endorsement is None:
            self._endorsement = self._make_endorsement()
        return self._endorsement

    @property
    def report_version(self) -> int:
        """Of the attestation reports that it makes."""
        return self._requests.report_version

    def launch_start(self, policy: int) -> None:
        """SNP_LAUNCH_START."""
        self._expect("idle", "SNP_LAUNCH_START")
        check_policy(policy)
        self.policy = policy
        self.vmpcks = [os.urandom(KEY_BYTES) for _ in range(_VMPCKS)]
        self._state = "launching"

    def launch_update(
        self,
        gpa: int,
        data: bytes | memoryview,
        page_type: int,
        *,
        vmpl_perms: tuple[int, int, int] = (0, 0, 0),
        large: bool = False,
    ) -> None:
        """SNP_LAUNCH_UPDATE of whole pages, which the host must have assigned and not validated; `large`: of 2 MiB.

        Pages of 2 MiB are measured as the 512 pages that they consist of.
        """
        self._expect("launching", "SNP_LAUNCH_UPDATE")
        kind = self._page_type(page_type)
        if kind == PageType.VMSA:
            raise LaunchError("VMSA pages are measured one by one: launch_update_vmsa")
        size = PAGE_SIZE_2M if large else PAGE_SIZE
        if gpa % size or len(data) % size or not data:
            raise LaunchError(f"launch page at {gpa:#x}: address and length must be whole pages")
        if kind == PageType.CPUID:
            check_cpuid_page(bytes(data))
        elif kind == PageType.SECRETS:
            data = self._secrets_page()
            self._secrets_pages.append(gpa)
        elif kind == PageType.ZERO:
            data = bytes(len(data))
        self._load(gpa, memoryview(data), kind, gpa, vmpl_perms, PageSize.SIZE_2M if large else PageSize.SIZE_4K)

    def launch_update_vmsa(self, gpa: int, vmsa: bytes, *, measured_gpa: int = VMSA_GPA) -> None:
        """SNP_LAUNCH_UPDATE of a VMSA page."""
        self._expect("launching", "SNP_LAUNCH_UPDATE")
        if gpa % PAGE_SIZE or len(vmsa) != PAGE_SIZE:
            raise LaunchError(f"the VMSA at {gpa:#x} is not one whole page")
        self._load(gpa, memoryview(vmsa), PageType.VMSA, measured_gpa, (0, 0, 0))

    def launch_finish(
        self,
        *,
        host_data: bytes = bytes(32),
        id_block: bytes | None = None,
        id_auth: bytes = b"",
        author_key_enabled: bool = False,
    ) -> None:
        """SNP_LAUNCH_FINISH: nothing can be added any more.

        `id_block` (96 bytes) and `id_auth` (4096 bytes) are the guest owner's word on what the launch must be; raises
        LaunchError if they do not fit.
        """
        self._expect("launching", "SNP_LAUNCH_FINISH")
        if len(host_data) != 32:
            raise LaunchError(f"host data has 32 bytes, not {len(host_data)}")
        if id_block is not None:
            self._identity = check_id_block(
                id_block,
                id_auth,
                measurement=self.measurement,
                policy=self.policy,
                author_key_enabled=author_key_enabled,
            )
        self.host_data = host_data
        self._state = "running"

    # Running

    def guest_request(self, request: bytes) -> tuple[int, bytes]:
        """SNP_GUEST_REQUEST: (status, response page); no response unless the status is 0."""
        if self._state != "running":
            return FirmwareStatus.INVALID_GUEST_STATE, b""
        return self._requests.handle(request, self.vmpcks, self._guest())

    def dbg_decrypt(self, gpa: int) -> bytes:
        """SNP_DBG_DECRYPT: a private page in plain, for the host; only a guest whose policy allows DEBUG."""
        self._expect("running", "SNP_DBG_DECRYPT")
        if not self.policy & GuestPolicy.DEBUG:
            raise SnpError("POLICY_FAILURE: the guest's policy does not allow debugging")
        if gpa % PAGE_SIZE or not 0 <= gpa < self._memory.size:
            raise SnpError(f"INVALID_ADDRESS: {gpa:#x} is not a page of the guest")
        return bytes(self._memory.mapping[gpa : gpa + PAGE_SIZE])

    def _guest(self) -> LaunchedGuest:
        return LaunchedGuest(self.policy, self.measurement, self.host_data, self._identity)

    # Snapshots

    def dump(self) -> dict[str, Any]:
        """For a snapshot. The chip's keys are not in it: they are the machine's that runs it."""
        return {
            "state": self._state,
            "measurement": self._digest.value,
            "policy": self.policy,
            "host_data": self.host_data,
            "vmpcks": list(self.vmpcks),
            "identity": asdict(self._identity),
            "requests": self._requests.dump(),
            "secrets_pages": list(self._secrets_pages),
        }

    def load(self, state: dict[str, Any], *, new_keys: bool) -> None:
        """From a snapshot; guest memory must be restored already.

        Two machines from one snapshot would seal different messages with the same key and number, which for AES-GCM
        gives the key away: who sees both could forge messages of VMPL 0. So with `new_keys` levels 0 to 2 get others,
        in the secrets pages that the launch filled, and count from the beginning. Level 3 keeps its key: stock kernels
        read theirs only once. What it can ask for, the kernel of another such machine may ask for anyway.
        """
        self._state = state["state"]
        self._digest = LaunchDigest(state["measurement"])
        self.policy = state["policy"]
        self.host_data = state["host_data"]
        self.vmpcks = list(state["vmpcks"])
        self._identity = LaunchIdentity(**state["identity"])
        self._requests.load(state["requests"])
        self._secrets_pages = list(state["secrets_pages"])
        for vmpl in range(len(self.vmpcks) - 1) if new_keys else ():
            key = self.vmpcks[vmpl] = os.urandom(KEY_BYTES)
            self._requests.restart(vmpl)
            for gpa in self._secrets_pages:
                start = gpa + SecretsPage.vmpck_offset(vmpl)
                self._memory.mapping[start : start + KEY_BYTES] = key

    def _expect(self, state: str, command: str) -> None:
        if self._state != state:
            raise LaunchError(f"{command} is not possible now: the guest is {self._state}, not {state}")

    @staticmethod
    def _page_type(value: int) -> PageType:
        try:
            return PageType(value)
        except ValueError:
            raise LaunchError(f"there is no launch page type {value}") from None

    def _load(
        self,
        gpa: int,
        data: memoryview,
        kind: PageType,
        measured_gpa: int,
        permissions: tuple[int, int, int],
        size: PageSize = PageSize.SIZE_4K,
    ) -> None:
        if gpa + len(data) > self._memory.size:
            raise LaunchError(f"launch page at {gpa:#x} lies outside guest memory")
        entry = PAGE_SIZE_2M if size == PageSize.SIZE_2M else PAGE_SIZE
        for offset in range(0, len(data), PAGE_SIZE):
            if offset % entry == 0:
                vmsa = kind == PageType.VMSA
                code = self._rmp.launch_page(gpa + offset, size=size, vmsa=vmsa, permissions=permissions)
                if code != RmpResult.SUCCESS:
                    raise LaunchError(f"launch page at {gpa + offset:#x} refused: {code.name}")
            self._digest.extend(measured_gpa + offset, data[offset : offset + PAGE_SIZE], kind, permissions)
        self._memory.mapping[gpa : gpa + len(data)] = data

    def _secrets_page(self) -> bytes:
        page = SecretsPage(version=SECRETS_VERSION)
        for vmpl, key in enumerate(self.vmpcks):
            page.vmpck[vmpl][:] = list(key)
        return bytes(page)


def check_policy(policy: int) -> None:
    """Raises LaunchError for a guest policy that SNP_LAUNCH_START refuses."""
    if not policy & GuestPolicy.RESERVED_ONE:
        raise LaunchError(f"policy {policy:#x}: bit 17 must be one (56860, table 'Guest Policy')")
    if policy >> FIRST_UNKNOWN_POLICY_BIT:
        raise LaunchError(f"policy {policy:#x}: bits 63:26 must be zero (56860, table 'Guest Policy')")
    if policy & GuestPolicy.MIGRATE_MA:
        raise LaunchError("POLICY_FAILURE: there are no migration agents on this machine")


def _new_chip() -> Endorsement:
    # Here, because few guests ask for reports and X.509 takes long to import.
    from veil.snp.endorsement import Endorsement

    return Endorsement.generate(MODEL_TCB)
