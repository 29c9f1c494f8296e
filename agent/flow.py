"""How fast acting and learning may go, relative to each other, when neither waits for the other's every step."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Accepted:
    """What a replay has taken so far, over the whole run. Every counter of a distributed run follows from it: a step
    counts when the replay has it, and so exactly once.

    records:    rows added, among them last observations of episodes, from which no step was taken.
    env_steps:  steps among them.
    held:       records it holds now.
    """

    records: int = 0
    env_steps: int = 0
    held: int = 0


class ReplayRatio:
    """Holds updates per record at what the configuration says, from both sides.

    Updates wait for records to pay for them, as in one process. Gathering waits too: it is ordered only while the
    updates already paid for and not yet made, with those that orders under way will pay for, stay below `slack`. So
    neither side runs ahead by more than a known amount, whichever is the faster, and what waits is never more than
    that. (Reverb's SampleToInsertRatio limiter does the same by blocking calls, Cassirer et al. 2021; orders that are
    not given need no blocking and cannot deadlock.)
    """

    def __init__(self, *, updates_per_record: float, min_records: int, slack: float, owed: float = 0.0) -> None:
        """min_records: held before any update is paid for. slack: in updates. owed: of a resumed run."""
        self._price = updates_per_record
        self._min_records = min_records
        self.slack = slack
        self.owed = owed
        self._ordered = 0  # records under way
        self._held = 0

    @property
    def due(self) -> int:
        """Whole updates that may be made now. None while the replay holds too little to learn from."""
        return int(self.owed) if self._held >= self._min_records else 0

    @property
    def ordered(self) -> int:
        """Records under way."""
        return self._ordered

    @property
    def may_order(self) -> bool:
        """Whether more records may be ordered. Always while there are too few to learn from."""
        if self._held + self._ordered < self._min_records:
            return True
        return self.owed + self._price * self._ordered < self.slack

    def order(self, records: int) -> None:
        """Records are under way."""
        self._ordered += records

    def withdraw(self, records: int) -> None:
        """They will not come."""
        self._ordered -= records

    def accept(self, records: int, held: int) -> None:
        """Ordered records have arrived; the replay now holds `held`. Those that fill it up to the minimum pay for
        nothing."""
        self._ordered -= records
        self._held = held
        self.owed += self._price * min(records, max(0, held - self._min_records))

    def lose(self, held: int) -> None:
        """The replay had to be replaced and holds `held`; what its records had paid for is forgotten."""
        self._held, self.owed = held, 0.0

    def spend(self, updates: int) -> None:
        """Updates were made."""
        self.owed -= updates
