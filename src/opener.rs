//! Opens the sealed lines of one topic, after it has looked at what was there before.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Instant;

use crate::client::{Consumer, Event, Offsets, Record, Start, is_before};
use crate::error::Result;
use crate::name::Name;
use crate::read_limit::ReadLimit;
use crate::seal::{LookBack, Opened, Read, Reader, Secret, Seen};

/// Opens lines, and knows which of them it has read.
pub struct Opener {
    reader: Reader,
    /// What lies before these offsets was in the log at the start.
    ends: Offsets,
    /// The last lines before the start, in the order of their clocks.
    pub earlier: Vec<EarlierLine>,
}

/// What is wanted of the lines before the start.
pub struct Wanted<'a> {
    /// Whose they are, by their records' key; none for all.
    pub sender: Option<&'a Name>,
    /// How many of them are kept: the last ones by their clocks.
    pub count: usize,
    /// What to do about what happens to the connection meanwhile.
    pub report: fn(&Event),
}

/// A line before the start.
pub struct EarlierLine {
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// Its record's key.
    pub key: Vec<u8>,
    /// What was sealed.
    pub line: Opened,
}

/// What was opened before the start.
#[derive(Default)]
struct Found {
    /// Each line, and its place.
    seen: Vec<((i32, i64), Seen)>,
    /// The last lines by their clocks, as many as are wanted. Copies, which anyone can write, are one line.
    last: BTreeMap<(i64, Seen), EarlierLine>,
}

impl Found {
    /// Keeps a line if it is one of the last `count`.
    fn keep(&mut self, key: (i64, Seen), line: EarlierLine, count: usize) {
        self.last.insert(key, line);
        if self.last.len() > count {
            self.last.pop_first();
        }
    }
}

impl Opener {
    /// For what `consumer` is about to read of `topic`. Before that, it opens what lies just before, with consumers
    /// that `open` creates: a line that is repeated later is known then.
    pub fn new(
        secret: &Secret,
        topic: &Name,
        consumer: &mut dyn Consumer,
        open: impl Fn(Start) -> Result<Box<dyn Consumer>>,
        wanted: &Wanted<'_>,
    ) -> Result<Opener> {
        let mut opener = Opener {
            reader: Reader::new(secret, topic)?,
            ends: consumer.end_offsets()?,
            earlier: Vec::new(),
        };
        let start = consumer.position();
        let oldest = match start.values().any(|&start| start > 0) {
            true => open(Start::Earliest)?.position(),
            false => start.clone(),
        };
        let mut look = LookBack::new(&oldest, &start);
        let mut all = Found::default();
        while let Some((from, to)) = look.window() {
            // A partition that is not named would be read from its oldest record.
            let from = start
                .iter()
                .map(|(p, start)| (*p, *from.get(p).unwrap_or(start)));
            let mut consumer = open(Start::At(from.collect()))?;
            let found = opener.look(consumer.as_mut(), &to, &mut look, wanted)?;
            if look.on_window() {
                all.seen.extend(found.seen);
                for (key, line) in found.last {
                    all.keep(key, line, wanted.count);
                }
            }
        }
        // The sessions that were used last are remembered for longest.
        all.seen.sort_by_key(|(at, _)| *at);
        for (_, seen) in all.seen {
            opener.reader.remember(seen);
        }
        opener.earlier = all.last.into_values().collect();
        Ok(opener)
    }

    /// One of `topic` that knows of no line, with keys that no secret has.
    #[cfg(test)]
    pub(crate) fn for_test(topic: &str) -> Opener {
        Opener {
            reader: Reader::for_test(topic),
            ends: Offsets::new(),
            earlier: Vec::new(),
        }
    }

    /// Opens the records of a window, which ends at `ends`.
    fn look(
        &self,
        consumer: &mut dyn Consumer,
        ends: &Offsets,
        look: &mut LookBack,
        wanted: &Wanted<'_>,
    ) -> Result<Found> {
        let mut found = Found::default();
        let mut limit = ReadLimit::new(None, Some(ends.clone()));
        let mut fits = true;
        while fits && !limit.is_reached(&consumer.position()) {
            let events = limit.poll(consumer, |limit, record| {
                if !limit.takes(record.partition, record.offset) {
                    return ControlFlow::Continue(());
                }
                let (key, value) = key_and_value(record);
                if wanted.sender.is_none_or(|sender| sender.as_bytes() == key) {
                    self.find(record, wanted.count, &mut found);
                }
                fits = look.on_record(record.partition, key.len() + value.len());
                match fits {
                    true => ControlFlow::Continue(()),
                    false => ControlFlow::Break(()),
                }
            })?;
            events.iter().for_each(wanted.report);
        }
        Ok(found)
    }

    fn find(&self, record: &Record<'_>, count: usize, found: &mut Found) {
        let (key, value) = key_and_value(record);
        let Some((seen, line)) = self.reader.look(key, value) else {
            return;
        };
        let (partition, offset) = (record.partition, record.offset);
        found.seen.push(((partition, offset), seen.clone()));
        let clock = line.clock;
        let line = EarlierLine {
            partition,
            offset,
            key: key.to_vec(),
            line,
        };
        found.keep((clock, seen), line, count);
    }

    /// Takes a record that is to be shown, if it can be.
    pub fn read(&mut self, record: &Record<'_>, now: Instant) -> Read {
        let is_old = is_before(&self.ends, record.partition, record.offset);
        let (key, value) = key_and_value(record);
        self.reader.read(key, value, is_old, now)
    }

    /// Takes a record that is not to be shown.
    pub fn skip(&mut self, record: &Record<'_>) {
        let (key, value) = key_and_value(record);
        if let Some((seen, _)) = self.reader.look(key, value) {
            self.reader.remember(seen);
        }
    }

    /// What to say about lines for which nothing was said so far, if it is due; at the end, it is.
    pub fn counts(&mut self, is_end: bool, now: Instant) -> Vec<String> {
        self.reader.counts(is_end, now)
    }

    /// A log that was created again, or lost records, has another end.
    pub fn on_event(&mut self, event: &Event) {
        match event {
            Event::Recreated { ends, .. } => self.ends.clone_from(ends),
            Event::Missed {
                partition,
                wanted,
                resumed,
                end,
            } if resumed < wanted => _ = self.ends.insert(*partition, *end),
            _ => {}
        }
    }
}

fn key_and_value<'a>(record: &Record<'a>) -> (&'a [u8], &'a [u8]) {
    let [key, value] = [record.key, record.value].map(Option::unwrap_or_default);
    (key, value)
}
