//! The last messages of a topic: which they are, before any of them is printed.
//!
//! Kafka has no request for them. Offsets do not count messages: compaction leaves holes, and transactions write
//! markers and records that were aborted. So the end of the log is read twice. The first time, only times and
//! offsets are kept, so that memory does not grow with the size of messages. A chat, which asks for few and sets
//! [bounds](Bounds), keeps the lines themselves, and reads once.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Instant;

use crate::client::{Consumer, Event, Offsets, Record, Start, cut, is_before};
use crate::ending::say;
use crate::error::{Error, Result};
use crate::read_limit::ReadLimit;

/// The most messages that can be asked for. For each of them, about 50 bytes are kept.
pub const MAX_COUNT: u64 = 1_000_000;

/// How many more offsets than messages the first look covers.
const SPARE_OFFSETS: i64 = 16;
/// How many times as many offsets the next look covers, if this one found too few messages.
const GROWTH: i64 = 8;

/// Orders messages: by their time, where there are several partitions, and those without one first; then by
/// their offset, and by partition.
type Rank = (Option<i64>, i64, i32);

/// How far a search goes.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// How many offsets of a partition it looks at: the last ones.
    pub offsets: i64,
    /// How many bytes of keys and values one look takes. If there are more, it looks at fewer offsets.
    pub bytes: usize,
    /// When it fails without an answer.
    pub deadline: Option<Instant>,
}

impl Bounds {
    /// To the oldest record kept, however long it takes.
    const NONE: Bounds = Bounds {
        offsets: i64::MAX,
        bytes: usize::MAX,
        deadline: None,
    };
}

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
        let keep = |record: &Record<'_>| shows(record).then_some(());
        let (ends, found) = search(count, &Bounds::NONE, open, keep, |event| say(event))?;
        let mut start = ends.clone();
        for (_, offset, partition) in found.last.keys() {
            let first = start.entry(*partition).or_insert(*offset);
            *first = *offset.min(first);
        }
        let least = found.last.keys().next().copied();
        Ok(Last { ends, start, least })
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
            } => cut(&mut self.ends, *partition, *resumed),
            Event::Recreated { .. } => self.ends.values_mut().for_each(|it| *it = 0),
            _ => {}
        }
    }
}

/// What is kept of the last `count` messages within `bounds` of the topic that `open` opens, in their order. `keep`
/// returns that of a message, and nothing of another record.
pub fn kept<T>(
    count: u64,
    bounds: &Bounds,
    open: impl Fn(Start) -> Result<Box<dyn Consumer>>,
    keep: impl Fn(&Record<'_>) -> Option<T>,
) -> Result<Vec<T>> {
    let (_, found) = search(count, bounds, open, keep, |_| {})?;
    Ok(found.last.into_values().collect())
}

/// Finds the last messages before the present ends of the log, which it returns, too.
fn search<T>(
    count: u64,
    bounds: &Bounds,
    open: impl Fn(Start) -> Result<Box<dyn Consumer>>,
    keep: impl Fn(&Record<'_>) -> Option<T>,
    on_event: impl Fn(&Event),
) -> Result<(Offsets, Found<'_, T>)> {
    let mut consumer = open(Start::Earliest)?;
    let (oldest, ends) = (consumer.position(), consumer.end_offsets()?);
    drop(consumer);
    let oldest = |partition: i32, end: i64| {
        let oldest = oldest.get(&partition).map_or(0, |it| *it.min(&end));
        oldest.max(end.saturating_sub(bounds.offsets))
    };
    if count == 0 {
        let found = Found::new(count, bounds, &ends);
        return Ok((ends, found));
    }
    let mut window = count as i64 + SPARE_OFFSETS;
    let mut found_before = None;
    // A look that took too many bytes.
    let mut is_shrunk = false;
    loop {
        let from = |(&partition, &end): (&i32, &i64)| {
            (
                partition,
                oldest(partition, end).max(end.saturating_sub(window)),
            )
        };
        let from: Offsets = ends.iter().map(from).collect();
        let mut found = Found::new(count, bounds, &ends);
        let mut consumer = open(Start::At(from.clone()))?;
        if !found.read(consumer.as_mut(), &ends, &keep, &on_event)? {
            if found_before.is_some() || window == 1 {
                break;
            }
            is_shrunk = true;
            window = (window / GROWTH).max(1);
            continue;
        }
        let is_enough = |(&partition, &from): (&i32, &i64)| {
            let is_whole = from <= oldest(partition, ends[&partition]);
            is_whole || found.in_partition(partition) >= count
        };
        let is_done = is_shrunk || from.iter().all(is_enough);
        found_before = Some(found);
        if is_done {
            break;
        }
        window = window.saturating_mul(GROWTH);
    }
    let found = found_before.unwrap_or_else(|| Found::new(count, bounds, &ends));
    Ok((ends, found))
}

/// The last of the messages that were read so far.
struct Found<'b, T> {
    /// How many are wanted.
    count: u64,
    bounds: &'b Bounds,
    /// How many partitions there are.
    partitions: usize,
    /// What is kept of the last of them.
    last: BTreeMap<Rank, T>,
    /// How many were read of each partition.
    read: BTreeMap<i32, u64>,
    /// How many bytes were read.
    bytes: usize,
}

impl<T> Found<'_, T> {
    fn new<'b>(count: u64, bounds: &'b Bounds, ends: &Offsets) -> Found<'b, T> {
        Found {
            count,
            bounds,
            partitions: ends.len(),
            last: BTreeMap::new(),
            read: BTreeMap::new(),
            bytes: 0,
        }
    }

    /// Reads up to `ends`. Returns whether that took no more bytes than allowed.
    fn read(
        &mut self,
        consumer: &mut dyn Consumer,
        ends: &Offsets,
        keep: impl Fn(&Record<'_>) -> Option<T>,
        on_event: impl Fn(&Event),
    ) -> Result<bool> {
        let mut limit = ReadLimit::new(None, Some(ends.clone()));
        while !limit.is_reached(&consumer.position()) {
            let deadline = self.bounds.deadline;
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(Error::failed("cannot read the topic", "no answer in time"));
            }
            let events = limit.poll(consumer, |limit, record| {
                let [key, value] = [record.key, record.value].map(Option::unwrap_or_default);
                self.bytes = self.bytes.saturating_add(key.len() + value.len());
                if self.bytes > self.bounds.bytes {
                    return ControlFlow::Break(());
                }
                if let Some(kept) = keep(record)
                    && limit.takes(record.partition, record.offset)
                {
                    self.add(record, kept);
                }
                ControlFlow::Continue(())
            })?;
            if self.bytes > self.bounds.bytes {
                return Ok(false);
            }
            events.iter().for_each(&on_event);
        }
        Ok(true)
    }

    fn add(&mut self, record: &Record<'_>, kept: T) {
        *self.read.entry(record.partition).or_default() += 1;
        self.last.insert(rank(record, self.partitions), kept);
        if self.last.len() as u64 > self.count {
            self.last.pop_first();
        }
    }

    fn in_partition(&self, partition: i32) -> u64 {
        self.read.get(&partition).copied().unwrap_or(0)
    }
}

fn rank(record: &Record<'_>, partitions: usize) -> Rank {
    let time = record.timestamp.filter(|_| partitions > 1);
    (time, record.offset, record.partition)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::cmp::Reverse;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::client::POLL_WAIT;

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
                            value: Some(b"ten bytes."),
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
    fn a_search_keeps_to_its_bounds() {
        let log = vec![vec![Some(None); 1000]];
        let kept = |count, offsets, records: usize, every: i64| {
            let bounds = Bounds {
                offsets,
                bytes: 10 * records,
                deadline: None,
            };
            let open = |start| open(&log, 0, start);
            let keep = |it: &Record<'_>| (it.offset % every == 0).then_some(it.offset);
            super::kept(count, &bounds, open, keep).unwrap()
        };
        assert_eq!(kept(3, 10_000, 1000, 1), [997, 998, 999]);
        assert_eq!(kept(3, 10_000, 1000, 400), [0, 400, 800]);
        // So many offsets, and no more.
        assert_eq!(kept(3, 700, 1000, 400), [400, 800]);
        assert!(kept(3, 100, 1000, 400).is_empty());
        // A look at more of them would take too many bytes …
        assert!(kept(3, 10_000, 200, 400).is_empty());
        assert_eq!(kept(3, 10_000, 200, 100), [900]);
        // … and so would the first.
        assert_eq!(kept(1000, 10_000, 20, 1), (985..1000).collect::<Vec<_>>());
        assert_eq!(kept(3, 10_000, 1, 1), [999]);
        assert!(kept(3, 10_000, 0, 1).is_empty());
        assert!(kept(0, 10_000, 1000, 1).is_empty());
    }

    #[test]
    fn a_search_fails_at_its_deadline() {
        let bounds = Bounds {
            deadline: Some(Instant::now()),
            ..Bounds::NONE
        };
        let log = vec![vec![Some(None); 3]];
        let kept = kept(3, &bounds, |start| open(&log, 0, start), |_| Some(()));
        assert!(kept.unwrap_err().to_string().contains("in time"));
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
