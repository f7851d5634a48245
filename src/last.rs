//! The last messages of a topic: which they are, before any of them is printed.
//!
//! Kafka has no request for them. Offsets do not count messages: compaction leaves holes, and transactions write
//! markers and records that were aborted. So the end of the log is read twice. The first time, only times and
//! offsets are kept, so that memory does not grow with the size of messages.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::ops::ControlFlow;

use crate::client::{Consumer, Event, Offsets, POLL_WAIT, Record, Start, is_before};
use crate::ending::say;
use crate::error::Result;
use crate::read_limit::ReadLimit;

/// The most messages that can be asked for. For each of them, 32 bytes are kept.
pub const MAX_COUNT: u64 = 1_000_000;

/// How many more offsets than messages the first look covers.
const SPARE_OFFSETS: i64 = 16;
/// How many times as many offsets the next look covers, if this one found too few messages.
const GROWTH: i64 = 8;

/// Orders messages: by their time, where there are several partitions, and those without one first; then by
/// their offset, and by partition.
type Rank = (Option<i64>, i64, i32);

/// The last messages of a topic at one moment, and all that come later.
#[derive(Debug)]
pub struct Last {
    /// The ends of the log at that moment.
    ends: Offsets,
    /// The first of the last messages in each partition, or the end.
    start: Offsets,
    /// The least of the last messages.
    least: Option<Rank>,
}

impl Last {
    /// Finds the last `count` messages of the topic that `open` opens. `shows` returns whether a record is a
    /// message.
    pub fn find(
        count: u64,
        open: impl Fn(Start) -> Result<Box<dyn Consumer>>,
        shows: impl Fn(&Record<'_>) -> bool,
    ) -> Result<Last> {
        let mut consumer = open(Start::Earliest)?;
        let (oldest, ends) = (consumer.position(), consumer.end_offsets()?);
        drop(consumer);
        let mut window = count as i64 + SPARE_OFFSETS;
        loop {
            let from = |(&partition, &end): (&i32, &i64)| {
                let oldest = oldest.get(&partition).map_or(0, |it| *it.min(&end));
                (partition, oldest.max(end - window))
            };
            let from: Offsets = ends.iter().map(from).collect();
            let mut found = Found::new(count, &ends);
            if count > 0 {
                found.read(open(Start::At(from.clone()))?.as_mut(), &ends, &shows)?;
            }
            let is_enough = |(partition, from): (&i32, &i64)| {
                let is_whole = oldest.get(partition).is_none_or(|oldest| from <= oldest);
                is_whole || found.in_partition(*partition) >= count
            };
            if from.iter().all(is_enough) {
                return Ok(found.into_last(ends));
            }
            window = window.saturating_mul(GROWTH);
        }
    }

    /// Where they start.
    pub fn start(&self) -> Start {
        Start::At(self.start.clone())
    }

    /// The ends of the log after them.
    pub fn ends(&self) -> Offsets {
        self.ends.clone()
    }

    /// Whether the record is one of them, or later.
    pub fn has(&self, record: &Record<'_>) -> bool {
        let is_later = !is_before(&self.ends, record.partition, record.offset);
        let rank = rank(record, self.ends.len());
        is_later || self.least.is_some_and(|least| rank >= least)
    }

    /// After records were missed, all that follows counts as later than the last messages.
    pub fn on_event(&mut self, event: &Event) {
        match event {
            Event::Missed {
                partition, resumed, ..
            } => {
                let end = self.ends.entry(*partition);
                end.and_modify(|it| *it = *resumed.min(it));
            }
            Event::Recreated { .. } => self.ends.values_mut().for_each(|it| *it = 0),
            _ => {}
        }
    }
}

/// The last of the messages that were read so far.
struct Found {
    /// How many are wanted.
    count: u64,
    /// How many partitions there are.
    partitions: usize,
    /// The last of them, the least on top.
    last: BinaryHeap<Reverse<Rank>>,
    /// How many were read of each partition.
    read: BTreeMap<i32, u64>,
}

impl Found {
    fn new(count: u64, ends: &Offsets) -> Found {
        Found {
            count,
            partitions: ends.len(),
            last: BinaryHeap::new(),
            read: BTreeMap::new(),
        }
    }

    /// Reads up to `ends`.
    fn read(
        &mut self,
        consumer: &mut dyn Consumer,
        ends: &Offsets,
        shows: impl Fn(&Record<'_>) -> bool,
    ) -> Result<()> {
        let mut limit = ReadLimit::new(None, Some(ends.clone()));
        while !limit.is_reached(&consumer.position()) {
            let events = consumer.poll(POLL_WAIT, &mut |record| {
                if shows(&record) && limit.takes(record.partition, record.offset) {
                    self.add(&record);
                }
                ControlFlow::Continue(())
            })?;
            for event in events {
                say(&event);
                limit.on_event(&event);
            }
        }
        Ok(())
    }

    fn add(&mut self, record: &Record<'_>) {
        *self.read.entry(record.partition).or_default() += 1;
        self.last.push(Reverse(rank(record, self.partitions)));
        if self.last.len() as u64 > self.count {
            self.last.pop();
        }
    }

    fn in_partition(&self, partition: i32) -> u64 {
        self.read.get(&partition).copied().unwrap_or(0)
    }

    fn into_last(self, ends: Offsets) -> Last {
        let mut start = ends.clone();
        for Reverse((_, offset, partition)) in &self.last {
            let first = start.entry(*partition).or_insert(*offset);
            *first = *offset.min(first);
        }
        let least = self.last.peek().map(|Reverse(least)| *least);
        Last { ends, start, least }
    }
}

fn rank(record: &Record<'_>, partitions: usize) -> Rank {
    let time = record.timestamp.filter(|_| partitions > 1);
    (time, record.offset, record.partition)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// What each offset of a partition has: nothing, or a record with a time or without.
    type Log = Vec<Vec<Option<Option<i64>>>>;

    /// Reads such a log, whose oldest offsets are gone.
    struct FakeConsumer {
        log: Log,
        position: Offsets,
    }

    fn open(log: &Log, oldest: i64, start: Start) -> Result<Box<dyn Consumer>> {
        let mut position: Offsets = (0..log.len()).map(|p| (p as i32, oldest)).collect();
        if let Start::At(named) = start {
            assert!(named.values().all(|&offset| offset >= oldest));
            position = named;
        }
        let log = log.clone();
        Ok(Box::new(FakeConsumer { log, position }))
    }

    impl Consumer for FakeConsumer {
        fn poll(
            &mut self,
            _wait: Duration,
            each: &mut dyn FnMut(Record<'_>) -> ControlFlow<()>,
        ) -> Result<Vec<Event>> {
            for (&partition, at) in &mut self.position {
                let log = &self.log[partition as usize];
                for offset in *at..log.len() as i64 {
                    if let Some(timestamp) = log[offset as usize] {
                        _ = each(Record {
                            partition,
                            offset,
                            timestamp,
                            ..Record::default()
                        });
                    }
                }
                *at = log.len() as i64;
            }
            Ok(Vec::new())
        }

        fn position(&self) -> Offsets {
            self.position.clone()
        }

        fn end_offsets(&mut self) -> Result<Offsets> {
            let ends = self.log.iter().map(|log| log.len() as i64);
            Ok((0..).zip(ends).collect())
        }
    }

    /// What is printed of the log: partitions and offsets, and with how many openings.
    fn printed(log: &Log, oldest: i64, count: u64) -> (Vec<(i32, i64)>, usize) {
        let opened = RefCell::new(0);
        let last = Last::find(
            count,
            |start| {
                *opened.borrow_mut() += 1;
                open(log, oldest, start)
            },
            |_| true,
        );
        let last = last.unwrap();
        let mut printed = Vec::new();
        let mut consumer = open(log, oldest, last.start()).unwrap();
        let poll = consumer.poll(POLL_WAIT, &mut |record| {
            if last.has(&record) {
                printed.push((record.partition, record.offset));
            }
            ControlFlow::Continue(())
        });
        poll.unwrap();
        (printed, opened.into_inner())
    }

    #[test]
    fn holes_are_stepped_over_until_there_are_enough() {
        let mut partition = vec![Some(None); 5];
        partition.extend(vec![None; 10_000]);
        let log = vec![partition];
        assert_eq!(printed(&log, 0, 2).0, [(0, 3), (0, 4)]);
        assert_eq!(printed(&log, 4, 2).0, [(0, 4)]);
        assert_eq!(printed(&log, 5, 2).0, []);
        assert_eq!(printed(&log, 0, 0).0, []);
        assert_eq!(printed(&vec![vec![]], 0, 3).0, []);
    }

    #[test]
    fn one_look_is_enough_where_there_are_few_holes() {
        let log = vec![vec![Some(Some(7)); 100_000]; 3];
        let (printed, openings) = printed(&log, 0, 9);
        assert_eq!(openings, 2);
        let expected = (0..3).flat_map(|p| (99_997..100_000).map(move |o| (p, o)));
        assert_eq!(printed, expected.collect::<Vec<_>>());
    }

    #[test]
    fn the_order_is_that_of_times_and_without_them_that_of_offsets() {
        let times = |times: &[i64]| times.iter().map(|&it| Some(Some(it))).collect::<Vec<_>>();
        let log = vec![times(&[1, 5, 9]), times(&[2, 3]), vec![Some(None); 4]];
        assert_eq!(printed(&log, 0, 3).0, [(0, 1), (0, 2), (1, 1)]);
        assert_eq!(printed(&log, 0, 6).0[5..], [(2, 3)]);
        let log = vec![times(&[9, 1, 8]), times(&[5])];
        assert_eq!(printed(&log, 0, 3).0, [(0, 0), (0, 2), (1, 0)]);
        // One partition is in order, whatever the times.
        let log = vec![times(&[9, 1, 5])];
        assert_eq!(printed(&log, 0, 2).0, [(0, 1), (0, 2)]);
    }

    #[test]
    fn what_a_new_log_has_is_later_than_the_last_messages() {
        let log = vec![vec![Some(None); 9]];
        let mut last = Last::find(2, |start| open(&log, 0, start), |_| true).unwrap();
        let record = Record {
            offset: 3,
            ..Record::default()
        };
        assert!(!last.has(&record));
        last.on_event(&Event::Missed {
            partition: 0,
            wanted: 9,
            resumed: 0,
            end: 4,
        });
        assert!(last.has(&record));
    }

    /// Records without a time, then records in the order of their times, and holes.
    fn partition() -> impl Strategy<Value = Vec<Option<Option<i64>>>> {
        let timeless = prop::collection::vec(prop::option::of(Just(None)), 0..30);
        let timed = prop::collection::vec(prop::option::weighted(0.3, 0..50i64), 0..300);
        (timeless, timed).prop_map(|(mut all, mut timed)| {
            let mut times: Vec<i64> = timed.iter().flatten().copied().collect();
            times.sort_unstable_by_key(|&time| Reverse(time));
            for time in timed.iter_mut().flatten() {
                *time = times.pop().unwrap();
            }
            all.extend(timed.into_iter().map(|it| it.map(Some)));
            all
        })
    }

    proptest! {
        #[test]
        fn these_are_the_last_ones(
            log in prop::collection::vec(partition(), 1..5),
            count in 0u64..40,
        ) {
            let mut all: Vec<Rank> = Vec::new();
            for (partition, records) in (0..).zip(&log) {
                for (offset, record) in (0..).zip(records) {
                    let time = |time: Option<i64>| time.filter(|_| log.len() > 1);
                    all.extend(record.map(|it| (time(it), offset, partition)));
                }
            }
            all.sort_unstable();
            let last = all.split_off(all.len().saturating_sub(count as usize));
            let mut expected: Vec<_> = last.into_iter().map(|(_, o, p)| (p, o)).collect();
            expected.sort_unstable();
            prop_assert_eq!(printed(&log, 0, count).0, expected);
        }
    }
}
