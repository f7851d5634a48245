//! A consumer's position in each partition of its topic, and where it continues when the log was
//! cut, deleted or created again.
//!
//! Pure state, without a client: both clients feed it. They don't say whether a log is still the
//! one that was read before, so the first record that was given decides: if the log has another
//! one at that offset, it is a new log of the same name.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;

use super::{Event, Offsets, Record, Start};

/// The positions in all partitions of one topic.
#[derive(Debug, Default)]
pub(super) struct Positions(BTreeMap<i32, Position>);

#[derive(Debug, Clone, Copy)]
struct Position {
    /// The offset of the next record to be given.
    next: i64,
    /// The first record that was given.
    first: Option<Fingerprint>,
}

/// What is kept of a record to recognize it when it is read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fingerprint {
    offset: i64,
    /// Of key and value.
    hash: u64,
}

impl Fingerprint {
    pub(super) fn of(record: &Record<'_>) -> Fingerprint {
        let mut hasher = DefaultHasher::new();
        (record.key, record.value).hash(&mut hasher);
        Fingerprint {
            offset: record.offset,
            hash: hasher.finish(),
        }
    }
}

impl Position {
    fn at(next: i64) -> Position {
        Position { next, first: None }
    }
}

impl Positions {
    /// Starts at these offsets of all partitions, or where `start` names others.
    pub(super) fn new(mut offsets: Offsets, start: Start) -> Positions {
        if let Start::At(named) = start {
            for (partition, offset) in named {
                offsets.entry(partition).and_modify(|at| *at = offset);
            }
        }
        let offsets = offsets.into_iter();
        Positions(offsets.map(|(p, next)| (p, Position::at(next))).collect())
    }

    /// The offset of the next record to be given, by partition.
    pub(super) fn offsets(&self) -> Offsets {
        self.0.iter().map(|(&p, at)| (p, at.next)).collect()
    }

    /// Moves past a record and returns whether it is to be given; it is not if it is from before the
    /// position, or of a partition that is not read.
    pub(super) fn advance(&mut self, record: &Record<'_>) -> bool {
        let Some(at) = self.0.get_mut(&record.partition) else {
            return false;
        };
        if record.offset < at.next {
            return false;
        }
        at.next = record.offset.saturating_add(1);
        at.first.get_or_insert_with(|| Fingerprint::of(record));
        true
    }

    /// Moves to a record, and returns the offsets between the position and it, if there are any.
    pub(super) fn skip_gap(&mut self, record: &Record<'_>) -> Option<Range<i64>> {
        let at = self.0.get_mut(&record.partition)?;
        let gap = at.next..record.offset;
        at.next = at.next.max(gap.end);
        (!gap.is_empty()).then_some(gap)
    }

    /// Moves past offsets that hold no record to be given, such as a transaction's marker.
    pub(super) fn skip_to(&mut self, partition: i32, offset: i64) {
        if let Some(at) = self.0.get_mut(&partition) {
            at.next = at.next.max(offset);
        }
    }

    /// Drops partitions that no longer exist, and reads new ones from their beginning. Returns whether
    /// there were any.
    pub(super) fn set_partitions(&mut self, existing: &BTreeSet<i32>) -> bool {
        let before: BTreeSet<i32> = self.0.keys().copied().collect();
        self.0.retain(|partition, _| existing.contains(partition));
        for &partition in existing {
            self.0.entry(partition).or_insert(Position::at(0));
        }
        before != *existing
    }

    /// Checks a position against the offsets that the log has now, and moves one that it does not
    /// have. `read` returns what the log has at an offset or, if nothing, next after it.
    ///
    /// A log that lost its newest records continues at its end: what is left of it was given
    /// before. One that lost its oldest, or a new one, continues at its oldest.
    pub(super) fn reconcile<E>(
        &mut self,
        partition: i32,
        log: Range<i64>,
        read: impl FnOnce(i64) -> Result<Option<Fingerprint>, E>,
    ) -> Result<Option<Event>, E> {
        let Some(at) = self.0.get_mut(&partition) else {
            return Ok(None);
        };
        let wanted = at.next;
        if (log.start..=log.end).contains(&wanted) {
            return Ok(None);
        }
        let is_same = match at.first {
            Some(first) if wanted > log.end && log.contains(&first.offset) => {
                read(first.offset)? == Some(first)
            }
            // A new log begins at 0, and still has its first records.
            Some(first) => wanted > log.end && first.offset < log.start,
            None => false,
        };
        match is_same {
            true => at.next = log.end,
            false => *at = Position::at(log.start),
        }
        Ok(Some(Event::Missed {
            partition,
            wanted,
            resumed: at.next,
            end: log.end,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(partition: i32, offset: i64, value: &[u8]) -> Record<'_> {
        Record {
            partition,
            offset,
            key: Some(b"alice"),
            value: Some(value),
            ..Record::default()
        }
    }

    fn moved(wanted: i64, resumed: i64, end: i64) -> Event {
        Event::Missed {
            partition: 0,
            wanted,
            resumed,
            end,
        }
    }

    /// A position at offset `next`, with a record given at offset `first` if there is one.
    fn positions(next: i64, first: Option<i64>) -> Positions {
        let mut positions =
            Positions::new(Offsets::from([(0, first.unwrap_or(next))]), Start::Earliest);
        if let Some(first) = first {
            assert!(positions.advance(&record(0, first, b"first")));
            positions.skip_to(0, next);
        }
        positions
    }

    #[test]
    fn a_position_is_checked_against_the_log() {
        for (next, first, log, expected) in [
            (5, Some(0), 0..9, Ok(None)),
            (5, Some(0), 0..5, Ok(None)),
            (5, Some(0), 5..9, Ok(None)),
            (0, None, 0..0, Ok(None)),
            // Its oldest records are gone.
            (5, Some(0), 6..9, Ok(Some(moved(5, 6, 9)))),
            (5, None, 6..9, Ok(Some(moved(5, 6, 9)))),
            // It is shorter than what was read, and no record of it is known.
            (5, None, 0..3, Ok(Some(moved(5, 0, 3)))),
            // It has the offset of the first record given: is it that record?
            (5, Some(0), 0..3, Err(0)),
            (5, Some(2), 1..3, Err(2)),
            // It no longer has that offset, because it is older …
            (9, Some(2), 3..5, Ok(Some(moved(9, 5, 5)))),
            (9, Some(2), 3..3, Ok(Some(moved(9, 3, 3)))),
            // … or because it is new and shorter.
            (9, Some(4), 0..2, Ok(Some(moved(9, 0, 2)))),
            (9, Some(0), 0..0, Ok(Some(moved(9, 0, 0)))),
        ] {
            let mut positions = positions(next, first);
            // The offset to be read again is returned as an error, which leaves the position alone.
            let moved = positions.reconcile(0, log.clone(), Err);
            assert_eq!(moved, expected, "{next}, {first:?}, {log:?}");
            let expected_next = match moved {
                Ok(Some(Event::Missed { resumed, .. })) => resumed,
                _ => next,
            };
            assert_eq!(positions.offsets()[&0], expected_next);
        }
    }

    #[test]
    fn the_first_record_tells_a_cut_log_from_a_new_one() {
        let same = Fingerprint::of(&record(0, 0, b"first"));
        let other = Fingerprint::of(&record(0, 0, b"another"));
        let later = Fingerprint::of(&record(0, 1, b"first"));
        for (found, resumed) in [
            (Some(same), 3),
            (Some(other), 0),
            (Some(later), 0),
            (None, 0),
        ] {
            let mut positions = positions(5, Some(0));
            let event = positions.reconcile(0, 0..3, |_| Ok::<_, i64>(found));
            assert_eq!(event, Ok(Some(moved(5, resumed, 3))), "{found:?}");
            assert_eq!(positions.offsets()[&0], resumed);
        }
    }

    #[test]
    fn a_new_log_is_recognized_by_its_own_first_record_later() {
        let mut positions = positions(5, Some(0));
        positions
            .reconcile(0, 0..3, |_| Ok::<_, i64>(None))
            .unwrap();
        assert!(positions.advance(&record(0, 0, b"new")));
        positions.skip_to(0, 3);
        let new = Fingerprint::of(&record(0, 0, b"new"));
        let event = positions.reconcile(0, 0..2, |offset| match offset {
            0 => Ok(Some(new)),
            other => Err(other),
        });
        assert_eq!(event, Ok(Some(moved(3, 2, 2))));
    }

    #[test]
    fn vanished_partitions_are_dropped_and_new_ones_read_from_the_beginning() {
        for (existing, offsets, changed) in [
            (&[0, 1][..], &[(0, 7), (1, 8)][..], false),
            (&[0, 1, 2], &[(0, 7), (1, 8), (2, 0)], true),
            (&[0], &[(0, 7)], true),
            (&[1, 3], &[(1, 8), (3, 0)], true),
        ] {
            let mut positions = Positions::new(Offsets::from([(0, 7), (1, 8)]), Start::Latest);
            let existing = existing.iter().copied().collect();
            assert_eq!(positions.set_partitions(&existing), changed, "{existing:?}");
            assert_eq!(positions.offsets(), offsets.iter().copied().collect());
        }
    }

    #[test]
    fn a_record_is_given_once_and_only_from_the_position_on() {
        let mut positions = Positions::new(Offsets::from([(0, 5)]), Start::Latest);
        assert!(!positions.advance(&record(0, 4, b"before")));
        assert!(positions.advance(&record(0, 6, b"after a gap")));
        assert!(!positions.advance(&record(0, 6, b"again")));
        assert!(!positions.advance(&record(1, 6, b"another partition")));
        assert_eq!(positions.offsets(), Offsets::from([(0, 7)]));
    }

    #[test]
    fn a_gap_is_found_once_and_only_before_a_record_that_is_to_be_given() {
        let mut positions = Positions::new(Offsets::from([(0, 5)]), Start::Latest);
        for (partition, offset, gap) in [
            (0, 4, None),
            (0, 5, None),
            (1, 9, None),
            (0, 9, Some(5..9)),
            (0, 9, None),
        ] {
            let found = positions.skip_gap(&record(partition, offset, b"line"));
            assert_eq!(found, gap, "{partition}, {offset}");
        }
        assert!(positions.advance(&record(0, 9, b"line")));
    }

    #[test]
    fn named_offsets_replace_those_of_partitions_that_exist() {
        let named = Start::At(Offsets::from([(1, 3), (2, 4)]));
        let positions = Positions::new(Offsets::from([(0, 7), (1, 8)]), named);
        assert_eq!(positions.offsets(), Offsets::from([(0, 7), (1, 3)]));
    }
}
