"""Where the members of one stitched model lie when only one of them fits the device."""

from __future__ import annotations

from typing import Any

import torch


class Shelf:
    """Of the members that share a device, the one that lies on it: the others wait on the CPU."""

    def __init__(self, present: Any) -> None:
        self.present: Any = present
        self.device: torch.device = present.device

    def place(self, device: torch.device) -> None:
        self.device = torch.device(device)
        self.present = None

    def bring(self, member: Any) -> None:
        if self.present is not None and self.present is not member and self.device.type != "cpu":
            self.present.to("cpu")
        member.to(self.device)  # also where it should lie there already: another pipeline may have moved it
        self.present = member

    def leave_only(self, present: Any, members: list[Any]) -> None:
        """Put all members but one on the CPU; that one stays where it is."""
        for member in members:
            if member is not present and self.device.type != "cpu":
                member.to("cpu")
        self.present = present

    def forget(self, member: Any) -> None:
        if self.present is member:
            self.present = None
