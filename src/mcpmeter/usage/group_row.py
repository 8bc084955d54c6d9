"""What the rows of every report begin with."""

from __future__ import annotations

import msgspec

Text = str | msgspec.UnsetType


class GroupRow(msgspec.Struct, frozen=True, kw_only=True):
    """The group that a row is of: its value of each requested grouping."""

    team: Text = msgspec.UNSET
    project: Text = msgspec.UNSET
    model: Text = msgspec.UNSET
    provider: Text = msgspec.UNSET
    key: Text = msgspec.UNSET
    day: Text = msgspec.UNSET
    outcome: Text = msgspec.UNSET
